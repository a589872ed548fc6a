"""`dlpr bench`: what the machine can do, what dlpr makes of it, and what others make of it.

A measurement is a function from a `Bench` to `Row`s, named in `suite.MEASUREMENTS`. It times dlpr
and its peer in turn, in the same run, and keeps every sample.
"""
