"""One module per command of `avspk`: `main(arguments, prog) -> exit status`; tools/ and eval/ call the same."""
