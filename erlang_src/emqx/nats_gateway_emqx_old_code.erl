%% Removes the code of the version that this one has replaced, while this one serves.
%%
%% Quirk: EMQX loads the modules of another version over those of the version before, which the
%% runtime keeps as old code. When EMQX removes a plugin, it has old code looked for in every process
%% of the node, module by module, and nobody is served meanwhile: 3.7 s for 71 modules with 624
%% processes. 5.10 to 6.3.
%% Seen in: emqx_plugins_apps; test_upgrade_and_rollback of test/emqx/test_upgrade_under_load.py.
%%
%% So it is done before, with breaks. The process ends when nothing is left.
-module(nats_gateway_emqx_old_code).

-behaviour(gen_server).

-export([child_spec/0]).
-export([start_link/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Until the clients have come back.
-define(DELAY_MS, 2000).
-define(MIN_BREAK_MS, 20).

%% Nobody waits for it when the plugin stops.
-spec child_spec() -> supervisor:child_spec().
child_spec() ->
    #{
        id => ?MODULE,
        start => {?MODULE, start_link, [?DELAY_MS]},
        restart => transient,
        shutdown => brutal_kill
    }.

-spec start_link(DelayMs :: non_neg_integer()) -> gen_server:start_ret().
start_link(DelayMs) -> gen_server:start_link(?MODULE, DelayMs, []).

init(DelayMs) ->
    {ok, Modules} = application:get_key(nats_gateway, modules),
    case lists:filter(fun erlang:check_old_code/1, Modules) of
        [] ->
            ignore;
        Replaced ->
            _ = erlang:send_after(DelayMs, self(), next),
            {ok, Replaced}
    end.

handle_call(_, _, Left) -> {reply, ignored, Left}.

handle_cast(_, Left) -> {noreply, Left}.

%% A break is as long as the search before it, so that a node with many processes keeps half of its
%% time.
handle_info(next, [Module | Left]) ->
    {Microseconds, _} = timer:tc(code, soft_purge, [Module]),
    _ = erlang:send_after(max(?MIN_BREAK_MS, Microseconds div 1000), self(), next),
    {noreply, Left};
handle_info(next, []) ->
    {stop, normal, []};
handle_info(_, Left) ->
    {noreply, Left}.
