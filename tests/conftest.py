"""Settings of every test: no example has a deadline, so a busy machine turns no claim red."""

from hypothesis import settings

settings.register_profile("zipfmax", deadline=None)
settings.load_profile("zipfmax")
