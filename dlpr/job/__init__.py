"""The job file."""

from dlpr.job.job import Job, Numerics, SetSpec, Units, load_job

__all__ = ["Job", "Numerics", "SetSpec", "Units", "load_job"]
