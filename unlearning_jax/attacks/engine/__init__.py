"""What several attacks are made of; the methods themselves are beside it."""
