"""Looking into what memories hold."""
