"""Every verb of a Comm of real processes, with exact and with fast sums."""

from comm_suite import *  # noqa: F403
