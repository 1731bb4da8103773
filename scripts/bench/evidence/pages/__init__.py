"""Tables and figures from files of answers, and the pages that have them."""
