"""What the program `vae-course` is, and `python -m vae_course`: it loads the command, then runs it.

No notebook exports this file. TensorFlow takes seconds to load, and Ctrl-C may come meanwhile; so the program
starts here, where nothing but Python is needed. Chapter 20 tells about it.
"""

import os
import signal
import sys


def run_command():
    "Load the command and run it; until it is there, Ctrl-C ends the process in one line."
    terminal = os.dup(2)  # while TensorFlow loads, its own lines go elsewhere

    def stop(*_):
        os.write(terminal, b"\nStopped before it began.\n")
        os._exit(130)  # at once: a library that is being imported may swallow an exception

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody has chosen to ignore it
        signal.signal(signal.SIGINT, stop)
    try:
        from vae_course.engine.cli import main
    except ImportError as error:
        sys.exit(f"Error: {error}")
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(terminal)
    main(prog_name="vae-course")


if __name__ == "__main__":
    run_command()
