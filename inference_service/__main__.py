"""`python -m inference_service`."""

from inference_service.cli.main import main

main()
