"""The REST face: routes, schemas, authentication and the one error form."""
