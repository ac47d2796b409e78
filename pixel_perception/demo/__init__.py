"""The demonstration: a recording, three ROS 2 processes and a page that shows what they answered."""
