"""The engine: runs a plan over local checkpoints, tensor by tensor, and can be interrupted."""
