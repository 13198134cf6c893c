"""config.pbtxt: made from the artifact and the serving options, rendered, parsed back and checked."""
