"""Messages generated from proto/telehandler/v1/telehandler.proto by `make proto`."""
