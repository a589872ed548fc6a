"""The job file."""

from dlpr.job.job import Job, Linear, Numerics, SetSpec, Units, load_job

__all__ = ["Job", "Linear", "Numerics", "SetSpec", "Units", "load_job"]
