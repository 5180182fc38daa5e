%% Exit statuses of the command `nats_gateway', of sysexits(3): usage, what others must provide, and
%% configuration.
-define(EX_USAGE, 64).
-define(EX_UNAVAILABLE, 69).
-define(EX_CONFIG, 78).
