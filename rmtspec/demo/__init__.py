"""A tour of rmtspec in under a minute."""

from rmtspec.demo.tour import run_demo

__all__ = ["run_demo"]
