"""What Git calls: diff driver, filter, hooks. Each module has main(argv) -> int."""
