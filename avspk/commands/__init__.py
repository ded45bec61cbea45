"""One module a command of `avspk`: `main(arguments, prog) -> exit status`; tools/ and eval/ call the same."""
