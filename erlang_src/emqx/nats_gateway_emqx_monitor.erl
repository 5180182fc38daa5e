%% The monitoring port of the plugin, and the requests below `$SYS.REQ.SERVER': what is told of this
%% node's gateway, and to whom.
-module(nats_gateway_emqx_monitor).

-export([change/3]).
-export([close/1]).
-export([gateway/0]).
-export([forget/0]).

-include_lib("kernel/include/logger.hrl").

-type facts() :: #{
    config := nats_gateway_config:config(),
    %% as EMQX has the gateway `nats'
    gateway := map(),
    %% milliseconds of the system's time
    started := integer()
}.

%% The port that is open now. Nobody's messages wait for it: one that cannot be opened is in the log.
-spec change(Old :: nats_gateway_monitor:bind(), New :: nats_gateway_monitor:bind(), facts()) ->
    nats_gateway_monitor:bind().
change(Old, New, Facts = #{config := Config}) ->
    ok = persistent_term:put(?MODULE, Facts),
    Access = maps:get(system, Config, nats_gateway_system_access:nobody()),
    ok = nats_gateway_monitor_system:change(
        nats_gateway_system_access:is_for_anybody(Access), fun gateway/0
    ),
    case nats_gateway_monitor:change(Old, New, fun gateway/0) of
        ok ->
            New;
        {error, Reason} ->
            ?LOG_ERROR(#{msg => "monitor_is_not_open", monitor_bind => address(New), reason => Reason}),
            %% The next change of the settings tries it again.
            Old
    end.

%% The gateway is unloaded.
-spec close(nats_gateway_monitor:bind()) -> ok.
close(Bind) ->
    ok = nats_gateway_monitor_system:change(false, fun gateway/0),
    nats_gateway_monitor:change(Bind, undefined, fun gateway/0).

%% Called when the application ends.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok = nats_gateway_monitor_system:forget(),
    nats_gateway_monitor:forget().

address(Bind) -> list_to_binary(nats_gateway_address:format(Bind)).

%% What is told of it at this moment.
-spec gateway() -> nats_gateway_monitor_facts:gateway().
gateway() ->
    #{config := Config, gateway := Gateway, started := Started} = persistent_term:get(?MODULE),
    #{
        config => Config,
        listeners => [listener(Listener) || Listener <- nats_gateway_emqx_config:listeners(Gateway)],
        started => Started,
        broker => local,
        health => fun() -> nats_gateway_emqx_health:health_check(#{}) end
    }.

listener(#{id := Id = {Type, _}, bind := Bind, conf := Conf}) ->
    #{
        name => atom_to_binary(nats_gateway_emqx_config:listener_id(Id)),
        type => Type,
        bind =>
            case Bind of
                {_, _} -> Bind;
                Port -> {{0, 0, 0, 0}, Port}
            end,
        max_connections => maps:get(max_connections, Conf, infinity)
    }.
