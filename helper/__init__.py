"""The root helper. Only `helper.wire` may be imported from outside this package."""
