"""Running a bundle: sessions, vision and the token loop. No torch, no ROS."""
