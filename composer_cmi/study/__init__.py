"""Many runs become one table that can be believed: sweep, statistics, report and pictures.

A study reads and writes run folders only; `composer-cmi sweep` makes them and `composer-cmi report` reads them, or a
table of scores from elsewhere.
"""
