"""Finding the state change that broke a model: a search on the path between a good state and a bad
one, with judges that are right or only mostly are."""
