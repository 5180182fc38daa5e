%% Unexpected behaviour of EMQX, and what the plugin does about it.
%%
%% Each quirk says what EMQX does, in which versions, and where that can be seen: in a file of EMQX,
%% or in a test. The quirks were seen in 5.10.4 and 6.3.0-beta.2; `5.10 to 6.3' means in both.
-module(nats_gateway_emqx_quirks).

%% Boot and end of a node
-export([is_running/1]).
-export([is_node_stopping/0]).
%% The name `nats'
-export([callback_module/0]).
-export([set_callback_module/1]).
-export([serve_with/1]).
-export([load/0]).
%% Clients
-export([forget_dead_clients/0]).
-export([authz_drained_at/0]).
%% Shared subscriptions
-export([give_to_another_member/3]).
-export([await_left/2]).

-include_lib("kernel/include/logger.hrl").

-define(CONTROLLER_MS, 1000).
-define(TERMINATOR, emqx_machine_terminator).
-define(STOPS_APPLICATIONS, emqx_machine_boot).

-define(DEFINITIONS, emqx_gateways).
-define(SCHEMA, emqx_nats_schema).
-define(LOAD_RETRIES, 20).
-define(LOAD_RETRY_MS, 100).
%% By then the processes of an unloaded gateway have ended.
-define(UNLOAD_MS, 5000).

%% -------------------------------------------------------------------------------------------
%% Boot and end of a node

%% Quirk: the order in which plugins and EMQX's gateway application start. 5.10 starts the plugins
%% first, 6.3 the gateways; with EMQX_FEATURES (from 6.0 on) the gateways may never start.
%% Seen in: emqx_machine_boot, emqx_plugins_app; test/emqx/test_lifecycle.py, test_profile.py.
%%
%% So we ask whether the application runs. The application controller of OTP knows it, but answers
%% nobody while it starts or stops an application.
-spec is_running(Application :: atom()) -> boolean().
is_running(Application) ->
    try
        lists:keymember(Application, 1, application:which_applications(?CONTROLLER_MS))
    catch
        exit:_ -> false
    end.

%% Quirk: EMQX stops its plugins before it stops itself, and also when it joins or leaves a cluster.
%% EMQX has no function that tells such a stop from that of a single plugin. 5.10 to 6.3.
%% Seen in: emqx_machine_boot:stop_apps/0, called by the process emqx_machine_terminator;
%% test_a_restart_of_the_node of test/emqx/test_lifecycle.py.
%%
%% The process has a registered name, and its stack trace says what it does.
-spec is_node_stopping() -> boolean().
is_node_stopping() ->
    case init:get_status() of
        {stopping, _} -> true;
        _ -> stops_applications(whereis(?TERMINATOR))
    end.

stops_applications(undefined) ->
    false;
stops_applications(Pid) ->
    case process_info(Pid, current_stacktrace) of
        {current_stacktrace, Stack} -> lists:keymember(?STOPS_APPLICATIONS, 1, Stack);
        undefined -> false
    end.

%% -------------------------------------------------------------------------------------------
%% The name `nats'

%% Quirk: a gateway that is registered before EMQX's gateway application has started stops the node
%% from booting. The application expects {error, already_registered}, and the registry answers
%% {error, already_existed}. 5.10 to 6.3.
%% Seen in: emqx_gateway_app:load_default_gateway_applications/0, emqx_gateway_registry:reg/2;
%% test_a_restart_of_the_node of test/emqx/test_lifecycle.py starts a node with the plugin.
%%
%% EMQX keeps the definitions of its gateways in a persistent term. Where they name our module, EMQX
%% registers it by itself.
-spec callback_module() -> module() | undefined.
callback_module() ->
    case [Module || #{name := nats, callback_module := Module} <- definitions()] of
        [Module] -> Module;
        [] -> undefined
    end.

-spec set_callback_module(module()) -> ok.
set_callback_module(Module) ->
    case callback_module() of
        Module ->
            ok;
        undefined ->
            ok;
        _ ->
            Definitions = [
                case Definition of
                    #{name := nats} -> Definition#{callback_module := Module};
                    #{} -> Definition
                end
             || Definition <- definitions()
            ],
            persistent_term:put(?DEFINITIONS, {value, Definitions})
    end.

definitions() -> emqx_gateway_utils:find_gateway_definitions().

%% Quirk: unregistering a loaded gateway blocks EMQX's registry. The registry unloads the gateway,
%% and unloading asks the registry. After 5 s the registry crashes and has forgotten all gateways.
%% 5.10 to 6.3.
%% Seen in: emqx_gateway_registry:unreg/1, emqx_gateway_insta_sup; test_stop_and_start_many_times of
%% test/emqx/test_lifecycle.py.
%%
%% So the order is: unload, unregister, register, load. The gateway is loaded by load/0.
-spec serve_with(module()) -> ok.
serve_with(Module) ->
    case emqx_gateway_registry:lookup(nats) of
        #{cbkmod := Module} ->
            ok;
        undefined when Module =:= nats_gateway_emqx ->
            %% The registry has forgotten us, but we may still be serving.
            _ = whereis(nats_gateway_emqx) =:= undefined andalso unload(),
            register(Module);
        _ ->
            unload(),
            _ = emqx_gateway_registry:unreg(nats),
            register(Module)
    end.

register(Module) -> emqx_gateway_registry:reg(nats, [{cbkmod, Module}, {schema, ?SCHEMA}]).

%% Quirk: emqx_gateway:unload/1 raises an error when the gateway's own callback fails. 5.10 to 6.3.
%% Seen in: emqx_gateway_sup, emqx_gateway_gw_sup (case_clause).
unload() ->
    Monitors = [monitor(process, Pid) || Pid <- gateway_processes()],
    try emqx_gateway:unload(nats) of
        _ -> nats_gateway_emqx_down:await(Monitors, ?UNLOAD_MS)
    catch
        _:Reason ->
            ?LOG_WARNING(#{
                msg => "gateway_unload_failed", reason => nats_gateway_guard:shape(Reason)
            })
    end.

%% Quirk: emqx_gateway:unload/1 returns before the lock of the gateway's clients (ekka_locker,
%% linked to the gateway's manager) has ended. Loading the gateway before that fails with
%% `already_started'. 5.10 to 6.3.
%% Seen in: emqx_gateway_cm, which starts the locker; test_stop_and_start_many_times of
%% test/emqx/test_lifecycle.py.
%%
%% So we wait for the gateway's processes and for those that are linked to these.
gateway_processes() ->
    case whereis(nats) of
        undefined ->
            [];
        Sup ->
            lists:usort([
                Pid
             || {_, Child, _, _} <- supervisor:which_children(Sup),
                is_pid(Child),
                {links, Links} <- [process_info(Child, links)],
                Pid <- [Child | Links],
                is_pid(Pid),
                Pid =/= Sup
            ])
    end.

%% Loads the gateway with EMQX's settings of it, if EMQX has any.
-spec load() -> ok.
load() ->
    case {emqx_gateway:lookup(nats), emqx_conf:get([gateway, nats], undefined)} of
        {undefined, Config} when is_map(Config) -> load(Config, ?LOAD_RETRIES);
        _ -> ok
    end.

%% Quirk: emqx_gateway:load/2 raises an error when a name is not free yet. 5.10 to 6.3.
%% Seen in: emqx_gateway_sup (badmatch), for example after the quirk of the lock.
load(Config, Retries) ->
    try emqx_gateway:load(nats, Config) of
        {ok, _} -> ok;
        {error, Reason} ->
            ?LOG_ERROR(#{msg => "gateway_load_failed", reason => load_error(Reason)})
    catch
        error:_ when Retries > 0 ->
            timer:sleep(?LOAD_RETRY_MS),
            load(Config, Retries - 1)
    end.

%% Quirk: EMQX's supervisor answers with an error that holds the settings, and so their secrets.
%% 5.10 to 6.3. Only a problem with the settings is safe in the log, because our own callback makes
%% it.
load_error({badconf, Problem}) -> {badconf, Problem};
load_error({Reason, _}) when is_tuple(Reason) -> load_error(Reason);
load_error(Reason) -> nats_gateway_guard:shape(Reason).

%% -------------------------------------------------------------------------------------------
%% Clients

%% Quirk: EMQX's manager of a gateway's clients ends without removing the rows of dead clients. EMQX
%% would count these clients for ever. 5.10 to 6.3.
%% Seen in: emqx_gateway_cm:terminate/2; test_stop_tells_the_clients_and_leaves_no_row of
%% test/emqx/test_lifecycle.py.
-spec forget_dead_clients() -> ok.
forget_dead_clients() ->
    Table = emqx_gateway_cm:tabname(chan, nats),
    case ets:whereis(Table) of
        undefined ->
            ok;
        _ ->
            lists:foreach(
                fun
                    (Channel = {_, Pid}) when node(Pid) =:= node() ->
                        is_process_alive(Pid) orelse
                            emqx_gateway_cm_registry:unregister_channel(nats, Channel);
                    (_) ->
                        ok
                end,
                ets:tab2list(Table)
            )
    end.

%% Quirk: when an operator empties the caches of access control, EMQX tells no process. It stores
%% the time (system time in milliseconds) in a persistent term, but has no function that returns it.
%% 5.10 to 6.3.
%% Seen in: emqx_authz_cache:drain_cache/0; test_the_cache_holds_until_it_is_drained of
%% test/emqx/test_authorization.py.
%%
%% Decisions from before that time are no longer valid.
-spec authz_drained_at() -> integer().
authz_drained_at() -> persistent_term:get({emqx_authz_cache, drain_timestamp}, 0).

%% -------------------------------------------------------------------------------------------
%% Shared subscriptions

%% Quirk: emqx_shared_sub:redispatch/1 drops messages of QoS 0. emqx_shared_sub:dispatch/4 gives a
%% message of any QoS to another member if the caller names this process as one that has failed.
%% 5.10 to 6.3.
%% Seen in: emqx_shared_sub;
%% test_a_member_that_leaves_by_its_max_hands_over_what_it_was_given of test/emqx/test_messages.py.
%%
%% If there is no other member, nobody gets the message.
-spec give_to_another_member(Group :: binary(), Filter :: binary(), Message :: term()) -> ok.
give_to_another_member(Group, Filter, Message) ->
    Delivery = {delivery, self(), Message},
    _ = emqx_shared_sub:dispatch(Group, Filter, Delivery, #{self() => no_local}),
    ok.

%% Quirk: emqx_broker:subscriber_down/1 returns before the process has left its groups: it sends a
%% cast to emqx_shared_sub, which handles casts and calls in their order. 5.10 to 6.3.
%% Seen in: emqx_broker:subscriber_down/1;
%% test_what_waits_for_a_client_that_ends_goes_to_another_member of test/emqx/test_clients.py.
%%
%% So a call waits until the process is in none of the groups. If the call gets no answer, we go on
%% as if the process had left.
-spec await_left(Group :: binary(), Filter :: binary()) -> ok.
await_left(Group, Filter) ->
    try
        emqx_shared_sub:unsubscribe(Group, Filter, self())
    catch
        exit:_ -> ok
    end.
