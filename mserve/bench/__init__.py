"""Measuring latency and capacity, and doubting the measurement.

targets: what is measured.

    target, opening         from the command line's words to an object
    url_target, in_process, spawn       a server, a bundle in this process, a server of our own
    tfs_target, oip_target, grpc_target what a server tells of its models, by protocol
    endpoint, pages, grpc_asking        where it listens, TLS, tokens; asked before the load

requests: what is sent.

    inputs, bundle_inputs, request_log  what requests carry
    codecs, verify          requests as bytes, and answers read and compared

load: what is sent when, and what is seen.

    schedule, job, load_job when requests are due (pure)
    session                 cold start, warm-up, measurement, the server's own counters, in turn
    engine, fleet, generator, placement what runs a job: this process or several, on which CPUs
    driver, loops, alarm    one phase: open loop, closed loop, stream
    connectors, client, grpc_client     connections that carry one request at a time
    recorder                what was seen of each request (pure)
    warmup, jitter, sightings           when it is steady; how late this machine is; which version answered
    server_view, statistics the server's own counters
    reload, publishers      versions that change meanwhile

judgement: what it amounts to (pure).

    quantiles, dependence, evidence     percentiles, their uncertainty, what counts prove
    slo, verdict, assertions            objectives, whether numbers mean anything, demands
    search, scenario, loadgen           the highest rate; MLPerf's rules, and its own library
    against, paired, baseline           whether B is slower than A

results: what is left behind.

    report, result, target_facts, swap_text, glance     for people and for `--json`
    html, charts, svg, exports, hdr                     files
    environment             the circumstances
"""
