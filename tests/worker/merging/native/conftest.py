"""Shapes in the annotations of the binding are checked while its tests run."""

from jaxtyping import install_import_hook

install_import_hook("worker.merging.native", "beartype.beartype")
