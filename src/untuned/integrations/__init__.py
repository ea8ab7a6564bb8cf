"""How the methods meet trainers, launchers and loggers, one module each; install what you use."""
