%% The monitoring port of the standalone gateway, and the requests below `$SYS.REQ.SERVER': what is told
%% of the listeners, the broker and the lame duck mode, and how they are opened, moved and closed.
-module(nats_gateway_standalone_monitor).

-export([count_clients/1]).
-export([open/1]).
-export([change/2]).
-export([answer_requests/1]).
-export([update/1]).
-export([gateway/0]).
-export([broker/0]).
-export([is_lame_duck/0]).

-type facts() :: #{
    config := nats_gateway_config:config(),
    listeners := [nats_gateway_listener:listener()],
    is_lame_duck := boolean()
}.

%% A broker that works is asked no more often than this, for a health check.
-define(TRY_MS, 10000).

%% Before the first client comes.
-spec count_clients(nats_gateway_config:config()) -> ok.
count_clients(#{monitor := Monitor, control := Control, system := Access}) ->
    IsWatched =
        Monitor =/= undefined orelse Control =/= undefined orelse
            nats_gateway_system_access:is_for_anybody(Access),
    case IsWatched of
        true -> nats_gateway_monitor:count_clients();
        false -> ok
    end.

-spec open(nats_gateway_monitor:bind()) -> ok | {error, inet:posix() | term()}.
open(Bind) -> nats_gateway_monitor:open(Bind, fun gateway/0).

%% At a reload.
-spec change(Old, New) -> ok | {error, inet:posix() | term()} when
    Old :: nats_gateway_monitor:bind(), New :: nats_gateway_monitor:bind().
change(Old, New) -> nats_gateway_monitor:change(Old, New, fun gateway/0).

%% Whether requests below `$SYS.REQ.SERVER' are answered, at the start and at a reload.
-spec answer_requests(nats_gateway_config:config()) -> ok.
answer_requests(#{system := Access}) ->
    nats_gateway_monitor_system:change(nats_gateway_system_access:is_for_anybody(Access), fun gateway/0).

%% What is told from now on; before the functions that open and change.
-spec update(facts()) -> ok.
update(Facts) -> persistent_term:put(?MODULE, Facts).

%% What is told now.
-spec gateway() -> nats_gateway_monitor_facts:gateway().
gateway() ->
    #{config := Config, listeners := Listeners} = Facts = persistent_term:get(?MODULE),
    #{
        config => Config,
        listeners => [maps:with([name, type, bind, max_connections], Listener) || Listener <- Listeners],
        started => started(),
        health => fun() -> health(Facts) end
    }.

%% Where the broker is, and whether it takes a connection at this moment.
-spec broker() -> {nats_gateway_upstream:upstream(), ok | {error, Why :: iodata()}}.
broker() ->
    #{config := #{upstream := Upstream}} = persistent_term:get(?MODULE),
    {Upstream, check(Upstream, 1)}.

-spec is_lame_duck() -> boolean().
is_lame_duck() ->
    #{is_lame_duck := IsLameDuck} = persistent_term:get(?MODULE),
    IsLameDuck.

started() ->
    erlang:convert_time_unit(erlang:system_info(start_time) + erlang:time_offset(), native, millisecond).

health(#{is_lame_duck := true}) ->
    {error, <<"lame duck mode: clients are told to go to another server">>};
health(#{config := #{upstream := Upstream = #{host := Host, port := Port}}}) ->
    case check(Upstream, ?TRY_MS) of
        ok ->
            ok;
        {error, Why} ->
            Address = nats_gateway_address:format({Host, Port}),
            {error, ["the broker at ", Address, " cannot be reached: ", Why]}
    end.

check(Upstream, MaxAge) ->
    case nats_gateway_upstream:check(Upstream, MaxAge) of
        ok -> ok;
        {error, Reason} -> {error, nats_gateway_upstream:explain(Reason)}
    end.
