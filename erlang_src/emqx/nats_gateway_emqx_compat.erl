%% Functions that not every supported version of EMQX has. What this version has is looked up once.
%% `nats_gateway_emqx_quirks' has the cases where EMQX behaves in an unexpected way.
-module(nats_gateway_emqx_compat).

-export([init/0]).
-export([forget/0]).
-export([supported/0]).
-export([otp_problem/1]).
-export([built_in/0]).
-export([run_hook/3]).
-export([fold_hook/4]).
-export([has_callbacks/1]).
-export([count/2]).
-export([needs_authenticator/0]).
-export([max_topic_levels/0]).
-export([publish_limits/0]).
-export([authz_cache/0]).
-export([send_retained/2]).

-define(BUILT_IN, emqx_gateway_nats).

%% Retained messages are read in batches of this size. The next batch is read when the client's
%% process has handled most of the messages that wait for it.
-define(RETAINED_BATCH, 100).
-define(MAX_WAITING, 1000).
-define(TAKING_MS, 10).

-define(MIN_OTP, 25).
-define(MAX_OTP, 28).

%% Must be called once, before any other function of this module.
-spec init() -> ok.
init() ->
    persistent_term:put(?MODULE, #{
        %% 6.1: callbacks may ask for what EMQX knows of the connection
        hook_context => is_exported(emqx_hooks, run, 3),
        %% 6.1: `inc/2' has another meaning
        inc_global => is_exported(emqx_metrics, inc_global, 2),
        %% 6.2
        security_profile => is_exported(emqx_security_profile, policy, 1),
        %% 6.2: the retainer serves only MQTT clients
        reads_retained => is_exported(emqx_retainer_extsub_handler, handle_subscribe, 4)
    }).

-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok.

%% The modules of a release are loaded at boot, but not in every kind of node.
is_exported(Module, Function, Arity) ->
    _ = code:ensure_loaded(Module),
    erlang:function_exported(Module, Function, Arity).

feature(Name) -> maps:get(Name, persistent_term:get(?MODULE)).

%% -------------------------------------------------------------------------------------------
%% The place of the built-in gateway

%% EMQX has no place for our gateway unless it has a built-in gateway `nats'.
-spec supported() -> ok | {error, {unsupported_otp | unsupported_emqx, Text :: string()}}.
supported() ->
    Otp = list_to_integer(erlang:system_info(otp_release)),
    case {otp_problem(Otp), is_exported(?BUILT_IN, on_gateway_load, 2)} of
        {none, true} ->
            ok;
        {none, false} ->
            Version = emqx_release:version(),
            {error, {unsupported_emqx, unsupported("EMQX", Version, "5.10 and newer")}};
        {Problem, _} ->
            {error, {unsupported_otp, Problem}}
    end.

-spec otp_problem(Release :: pos_integer()) -> none | string().
otp_problem(Otp) when Otp < ?MIN_OTP; Otp > ?MAX_OTP ->
    unsupported("Erlang/OTP", Otp, lists:concat([?MIN_OTP, " to ", ?MAX_OTP]));
otp_problem(_) ->
    none.

unsupported(What, Version, Supported) ->
    lists:concat([What, " ", Version, " is not supported: ", Supported, " are"]).

-spec built_in() -> module().
built_in() -> ?BUILT_IN.

%% -------------------------------------------------------------------------------------------
%% Hooks. ConnInfo is what EMQX knows of the connection.

-spec run_hook(atom(), ConnInfo :: map(), [term()]) -> ok.
run_hook(Name, ConnInfo, Arguments) ->
    case feature(hook_context) of
        true -> emqx_hooks:run(Name, context(ConnInfo), Arguments);
        false -> emqx_hooks:run(Name, Arguments)
    end.

-spec fold_hook(atom(), ConnInfo :: map(), [term()], Acc) -> Acc when Acc :: term().
fold_hook(Name, ConnInfo, Arguments, Acc) ->
    case feature(hook_context) of
        true -> emqx_hooks:run_fold(Name, context(ConnInfo), Arguments, Acc);
        false -> emqx_hooks:run_fold(Name, Arguments, Acc)
    end.

context(ConnInfo) -> #{conn_info_fn => fun(Key) -> maps:get(Key, ConnInfo) end}.

-spec has_callbacks(atom()) -> boolean().
has_callbacks(Name) -> emqx_hooks:lookup(Name) =/= [].

%% -------------------------------------------------------------------------------------------
%% Metrics, authentication and authorization

%% Counts in the metrics of the node, as EMQX does for MQTT.
-spec count(atom(), pos_integer()) -> ok.
count(Name, N) ->
    case feature(inc_global) of
        true -> emqx_metrics:inc_global(Name, N);
        false -> emqx_metrics:inc(Name, N)
    end.

%% Whether EMQX lets nobody in while there is no authenticator. The security profile `hardened' does
%% that.
-spec needs_authenticator() -> boolean().
needs_authenticator() ->
    feature(security_profile) andalso emqx_security_profile:policy(authn_not_configured) =:= deny.

%% All NATS clients are in the default zone.
-spec max_topic_levels() -> pos_integer().
max_topic_levels() -> emqx_config:get_zone_conf(default, [mqtt, max_topic_levels], 65535).

%% What EMQX takes of a PUBLISH, as it tells MQTT clients in CONNACK.
-spec publish_limits() -> #{max_qos := 0..2, retain_available := boolean()}.
publish_limits() ->
    #{
        max_qos => emqx_config:get_zone_conf(default, [mqtt, max_qos_allowed], 2),
        retain_available => emqx_config:get_zone_conf(default, [mqtt, retain_available], true)
    }.

%% How decisions may be cached: not at all, or for how long and how many.
-spec authz_cache() ->
    disabled | #{ttl := non_neg_integer(), max_size := pos_integer(), excludes := [binary()]}.
authz_cache() ->
    case emqx:get_config([authorization, cache], #{}) of
        #{enable := true, ttl := Ttl, max_size := MaxSize} = Cache ->
            #{ttl => Ttl, max_size => MaxSize, excludes => maps:get(excludes, Cache, [])};
        _ ->
            disabled
    end.

%% -------------------------------------------------------------------------------------------
%% Retained messages

%% Sends retained messages to a new subscription of this process, as `deliver' messages. Up to 6.1
%% the retainer itself does it, in the hook `session.subscribed'.
-spec send_retained(Topic :: binary() | tuple(), Options :: map()) -> ok.
send_retained(Filter, #{rh := 0}) when is_binary(Filter) ->
    case feature(reads_retained) of
        true ->
            Client = self(),
            _ = spawn(fun() -> send_retained(Filter, undefined, Client) end),
            ok;
        false ->
            ok
    end;
send_retained(_, _) ->
    ok.

send_retained(Filter, Cursor, Client) ->
    case emqx_retainer:match_messages(Filter, Cursor, #{batch_read_number => ?RETAINED_BATCH}) of
        {ok, Messages, Next} ->
            %% the retainer does the same
            lists:foreach(
                fun(Message) -> Client ! {deliver, Filter, Message} end,
                [M || M <- Messages, not emqx_banned:check_clientid(emqx_message:from(M))]
            ),
            case Next =/= undefined andalso is_taking(Client) of
                true -> send_retained(Filter, Next, Client);
                false -> ok
            end;
        %% The retainer is switched off.
        {error, _} ->
            ok
    end.

%% Waits until the client has handled most of its messages. The client may also be gone.
is_taking(Client) ->
    case process_info(Client, message_queue_len) of
        {message_queue_len, Waiting} when Waiting > ?MAX_WAITING ->
            timer:sleep(?TAKING_MS),
            is_taking(Client);
        {message_queue_len, _} ->
            true;
        undefined ->
            false
    end.
