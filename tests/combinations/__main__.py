"""`python -m tests.combinations`."""

from tests.combinations.run import main

main()
