"""The ROS 2 node: the only folder that imports rclpy.

The executor's thread does input and output only. Two workers do the work: one asks the language model (goals before
standing instructions), one follows the standing instruction with pixels alone on every new frame.
"""
