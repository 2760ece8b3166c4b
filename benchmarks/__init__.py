"""Figures of Shoal, each measured when asked for: `python -m benchmarks [NAME ...]`, or `make bench` for all."""
