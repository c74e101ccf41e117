"""Every verb of the Comms that take no process."""

from comm_suite import *  # noqa: F403
