"""The workers that are alive, and the models that they have, as they report them in Postgres."""
