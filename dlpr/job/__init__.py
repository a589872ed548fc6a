"""The job file."""

from dlpr.job.job import Job, Keys, Numerics, SetSpec, Units, load_job

__all__ = ["Job", "Keys", "Numerics", "SetSpec", "Units", "load_job"]
