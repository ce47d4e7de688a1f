"""What has no C here says so with this."""


class NoC(Exception):
    """An operation has no C here; the message is why, without its name, which whoever reads the graph knows."""
