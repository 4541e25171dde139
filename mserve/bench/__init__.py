"""Measuring latency and capacity, and doubting the measurement.

schedule    when requests are due (pure)
recorder    what was seen of each request, and what it amounts to (pure)
quantiles   percentiles with their uncertainty, and trends (pure)
slo, search which rates are good enough, and the highest of them (pure)
client      one keep-alive HTTP connection; targets: what is asked, over it or in process
driver      sends at the due times, whatever comes back
session     warm-up, measurement, the server's own counters: one after the other
report      the verdict, then the numbers that it allows
"""
