"""The pictures of a report: differences of any scores, and what run folders hold beside them."""
