"""What the service get_model_info answers."""
