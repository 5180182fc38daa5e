%% Supervises what all connections share and what the host needs. The standalone gateway adds its
%% listeners and its control.
-module(nats_gateway_sup).

-behaviour(supervisor).

-export([start_link/1]).
-export([init/1]).

-spec start_link([supervisor:child_spec()]) -> {ok, pid()} | {error, term()}.
start_link(Children) -> supervisor:start_link({local, ?MODULE}, ?MODULE, Children).

init(Children) ->
    {ok, {#{strategy => one_for_one, intensity => 5, period => 10},
        [
            #{id => Module, start => {Module, start_link, []}}
         || Module <- [nats_gateway_refusals, nats_gateway_passwords]
        ] ++
            nats_gateway_accounts:child_specs() ++ nats_gateway_kv_kept:child_specs() ++ Children}}.
