from hypothesis import settings

# A busy machine is no failure: how long one example takes says nothing about it being right. Examples are the same each time.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
