"""Import this before TensorFlow: it then starts without log lines."""

from vae_course.support import quiet_tensorflow

quiet_tensorflow()
