"""TensorRT and TensorRT-RTX: one module each for asking, describing, inspecting and running; any version's API."""
