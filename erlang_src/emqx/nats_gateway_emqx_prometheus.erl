%% The metrics of this node's gateway in EMQX's own endpoint for Prometheus.
%%
%% EMQX formats what all collectors of prometheus.erl's default registry tell, and the registry is open
%% to anybody. But each change of EMQX's settings for Prometheus removes the collectors that these do
%% not name (`emqx_prometheus_config'), so this process puts itself in again.
-module(nats_gateway_emqx_prometheus).

-behaviour(gen_server).

-export([change/1]).
-export([forget/0]).
-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).
%% The callbacks of a collector
-export([collect_mf/2]).
-export([deregister_cleanup/1]).

-include_lib("kernel/include/logger.hrl").

-define(REGISTRY, default).
-define(REGISTER_MS, 5000).

%% Whether it is there from now on; after `nats_gateway_emqx_monitor:change/3', which has the facts.
-spec change(boolean()) -> ok.
change(true) ->
    ok = nats_gateway_monitor:count_clients(),
    nats_gateway_monitor:start_child(#{id => ?MODULE, start => {?MODULE, start_link, []}});
change(false) ->
    nats_gateway_monitor:stop_child(?MODULE).

%% Called when the application ends: the endpoint must not call a module that is gone.
-spec forget() -> ok.
forget() ->
    try
        prometheus_registry:deregister_collector(?REGISTRY, ?MODULE)
    catch
        %% There is no registry.
        error:badarg -> ok
    end.

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

init([]) ->
    _ = process_flag(trap_exit, true),
    {noreply, State} = handle_info(register, []),
    {ok, State}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info(register, State) ->
    %% Once more is as once. EMQX may make its registry later.
    _ = ets:whereis(prometheus_registry_table) =/= undefined andalso
        prometheus_registry:register_collector(?REGISTRY, ?MODULE),
    _ = erlang:send_after(?REGISTER_MS, self(), register),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

terminate(_, _) -> forget().

%% -------------------------------------------------------------------------------------------

%% What goes wrong here must not hide EMQX's own metrics.
-spec collect_mf(Registry :: atom(), Callback :: fun((MetricFamily :: tuple()) -> term())) -> ok.
collect_mf(_, Callback) ->
    try nats_gateway_monitor_metrics:families(nats_gateway_emqx_monitor:gateway()) of
        Families ->
            lists:foreach(fun(Family) -> Callback(metric_family(Family)) end, Families)
    catch
        Class:Reason:Stack ->
            Caught = nats_gateway_guard:caught(Class, Reason, Stack),
            ?LOG_ERROR(Caught#{msg => "metrics_not_collected"})
    end.

-spec deregister_cleanup(Registry :: atom()) -> ok.
deregister_cleanup(_) -> ok.

metric_family({Name, Type, Help, Samples}) ->
    prometheus_model_helpers:create_mf(Name, Help, Type, [sample(Sample) || Sample <- Samples]).

sample({Labels, #{buckets := Buckets, count := Count, sum := Sum}}) -> {Labels, Buckets, Count, Sum};
sample({Labels, Value}) -> {Labels, Value}.
