"""How much memory a process holds, as Linux says it."""

from pathlib import Path


def mib(kind: str = "VmRSS", pid: int | str = "self") -> float:
    """Returns a line of ``/proc/PID/status``, such as VmRSS (what is in memory) or RssAnon (of it, its own), in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0]) / 1024
