"""The process that holds a local model. Only this package imports torch."""
