%% The host inside an EMQX node: the client's own process is a channel of EMQX's gateway `nats'.
%%
%% - The decoder has already converted topics and shared groups. Each key of the channel is one
%%   subscription of this process, and all have the same subscription id.
%% - A message for a plain and a shared subscription arrives in two copies. They look the same,
%%   except for a header of the second one that names the group.
%%
%% nats_gateway_emqx_client says who the client is for EMQX, and nats_gateway_emqx_message how
%% messages look. nats_gateway_emqx_authz knows what the client may do, and
%% nats_gateway_emqx_metrics what EMQX counts.
-module(nats_gateway_host_emqx).

-behaviour(nats_gateway_host).

-export([connect/1]).
-export([publish/3]).
-export([ready/1]).
-export([subscribe/3]).
-export([subscribe_again/3]).
-export([unsubscribe/2]).
-export([decline/2]).
-export([barrier/2]).
-export([handle_info/2]).
-export([handle_messages/2]).
-export([handle_call/3]).
-export([report/2]).
-export([undelivered/2]).
-export([disconnect/2]).
-export([ask_server/1]).
-export([ask_store/3]).

%% For tests
-export([is_unclaimed/1]).

-import(nats_gateway_emqx_metrics, [run_hook/4, fold_hook/5]).

-include("nats_gateway.hrl").
-include_lib("kernel/include/logger.hrl").

-record(subscription, {
    %% what was subscribed at the broker: a topic filter, or the broker's record of a shared one
    topic :: binary() | tuple(),
    options :: map(),
    no_local :: boolean()
}).

%% What stays as it was at the login.
-record(login, {
    conninfo :: map(),
    %% the same for each message
    headers :: map(),
    %% what is published when the client is gone
    presence = none :: nats_gateway_emqx_presence:presence(),
    context :: nats_gateway_emqx_metrics:context(),
    retained :: boolean(),
    %% whether headers set the properties of a PUBLISH, and tell those of a delivery
    publish_properties :: boolean(),
    show_properties :: boolean(),
    %% whether EMQX's automatic subscriptions are taken
    auto_subscribe :: boolean(),
    %% the name in answers of the key/value store
    server_id :: binary(),
    %% whose watchers of the key/value store are this client's
    identity = none :: nats_gateway_kv_kept:identity()
}).

%% The numbers in the last report.
-record(reported, {
    octets_received = 0 :: non_neg_integer(),
    octets_sent = 0 :: non_neg_integer(),
    operations_received = 0 :: non_neg_integer(),
    operations_sent = 0 :: non_neg_integer()
}).

-record(host, {
    login :: #login{},
    clientinfo :: map(),
    clientid :: binary(),
    mountpoint :: binary(),
    subs = #{} :: #{nats_gateway_host:key() => #subscription{}},
    %% unsubscribed, but the mailbox may still hold deliveries for them
    leaving = #{} :: #{nats_gateway_host:key() => #subscription{}},
    %% whether the client is a member of a group and must not get its own messages
    skips_own = false :: boolean(),
    %% other messages that were found during the search for own ones, latest first
    early = [] :: [tuple()],
    %% the broker's keys of subscriptions that a hook has changed
    rewritten = #{} :: #{nats_gateway_host:key() => nats_gateway_host:key()},
    authz :: nats_gateway_emqx_authz:authz(),
    %% of publishes whose headers ask for a QoS, and which are not counted yet
    asked = [] :: [0..2],
    %% microseconds that subscriptions and access control have taken since the last look at the
    %% mailbox
    spent = 0 :: non_neg_integer(),
    %% the rest of a batch of publishes, the index of its first one, and what was refused
    publishing = none ::
        none
        | {[#pub{}], pos_integer(), publish_options(), [
            {pos_integer(), nats_gateway_host:rejection()}
        ]},
    %% the keys that are still to be subscribed again, and what was refused
    again = none ::
        none
        | {[nats_gateway_host:key()], #{atom() => boolean()}, [
            {nats_gateway_host:key(), nats_gateway_host:refusal()}
        ]},
    reported = #reported{} :: #reported{},
    %% whether the next publishes are timed
    sample = false :: boolean(),
    %% what the client does with the key/value store, from its first request on
    kv = none :: none | nats_gateway_kv_session:session()
}).

-type host() :: #host{}.

-type publish_options() :: #{confirm := boolean(), no_responders := boolean()}.

%% Values that are looked up once per batch of publishes, and once more when it is continued.
-record(batch, {
    options :: publish_options(),
    qos :: 0 | 1,
    no_responders :: boolean(),
    %% index of the first publish, and when to look at the mailbox again: microseconds
    first :: pos_integer(),
    until :: integer(),
    max_levels :: pos_integer(),
    authz :: nats_gateway_emqx_authz:batch()
}).

-define(GATEWAY, nats).
%% Of the key/value store, for one client.
-define(MAX_WATCHERS, 250).
%% MQTT's Retain Handling
-define(NO_RETAINED, 2).
%% Access control and hooks may take any time, and the end of the client may wait in the mailbox.
-define(MAX_SPENT_US, 10000).

%% The number of publishes between two looks at the clock, while access control decides nothing.
-define(LOOK_AT_CLOCK, 16).

%% The number of deliveries that are taken from the mailbox at once.
-define(MAX_DELIVERIES, 1000).

%% -------------------------------------------------------------------------------------------
%% Login

-spec connect(nats_gateway_host:client()) ->
    {ok, nats_gateway_host:session(), host()} | {error, nats_gateway_host:close_reason()}.
connect(Client = #{config := #{host := #{context := Context}}}) ->
    Generated = nats_gateway_emqx_client:generated(),
    ClientInfo = nats_gateway_emqx_client:clientinfo(Client, Generated),
    #{clientid := ClientId, peername := Peername} = ClientInfo,
    ConnInfo = nats_gateway_emqx_client:conninfo(ClientInfo, Client),
    ok = emqx_logger:set_metadata_clientid(ClientId),
    ok = emqx_logger:set_metadata_peername(nats_gateway_address:format(Peername)),
    case nats_gateway_emqx_client:admit(Client, ClientInfo, ConnInfo, Context) of
        {ok, Admitted, Proven} ->
            ok = register(Admitted, ConnInfo, Context, ClientId =:= Generated),
            Host = #host{login = Login} = connected(Admitted, ConnInfo, Client),
            Session = maps:merge(identity(Host), Proven),
            Presence = nats_gateway_emqx_presence:connected(Client, Session, Login#login.headers),
            {ok, Session, Host#host{login = Login#login{presence = Presence}}};
        {error, Reason} ->
            ok = nats_gateway_census:login_refused(broker, Reason),
            nats_gateway_refusals:may_log(maps:get(listener, Client)) andalso
                ?LOG_WARNING(#{
                    msg => "client_login_failed",
                    clientid => ClientId,
                    username => maps:get(username, ClientInfo),
                    reason => Reason
                }),
            Connack = nats_gateway_emqx_client:connack(Reason),
            run_hook('client.connack', ConnInfo, [ConnInfo, Connack, #{}], Context),
            {error, nats_gateway_emqx_client:close_reason(Reason)}
    end.

identity(#host{login = #login{context = #{ctx := Ctx}}, clientinfo = ClientInfo, mountpoint = Mountpoint}) ->
    #{clientid := ClientId, username := Username} = ClientInfo,
    Session = #{clientid => ClientId, username => Username, mountpoint => Mountpoint},
    case emqx_gateway_ctx:connection_expire_interval(Ctx, ClientInfo) of
        undefined -> Session;
        Ms -> Session#{expires => Ms}
    end.

%% Nobody else has a generated name. So there is no session to take over, and no need to wait for
%% the lock of the cluster.
register(#{clientid := ClientId} = ClientInfo, ConnInfo, Context, true) ->
    ok = emqx_gateway_cm:register_channel(?GATEWAY, ClientId, self(), ConnInfo),
    run_hook('session.created', ConnInfo, [ClientInfo, session(ConnInfo)], Context);
register(ClientInfo, ConnInfo, _, false) ->
    Session = fun(_, _) -> session(ConnInfo) end,
    {ok, _} = emqx_gateway_cm:open_session(?GATEWAY, true, ClientInfo, ConnInfo, Session),
    ok.

session(#{connected_at := ConnectedAt}) -> #{created_at => ConnectedAt}.

connected(ClientInfo = #{clientid := ClientId}, ConnInfo, Client = #{config := Config}) ->
    #{retained_on_subscribe := Retained, host := Settings, server_id := ServerId} = Config,
    #{publish_properties := PublishProperties, show_properties := ShowProperties} = Config,
    #{context := Context, auto_subscribe := AutoSubscribe} = Settings,
    run_hook('client.connack', ConnInfo, [ConnInfo, connection_accepted, #{}], Context),
    run_hook('client.connected', ConnInfo, [ClientInfo, ConnInfo], Context),
    Mountpoint = nats_gateway_emqx_client:text(maps:get(mountpoint, ClientInfo)),
    Host = #host{
        login = #login{
            conninfo = ConnInfo,
            headers = nats_gateway_emqx_message:constant_headers(ClientInfo, ConnInfo),
            context = Context,
            retained = Retained,
            publish_properties = PublishProperties,
            show_properties = ShowProperties,
            auto_subscribe = AutoSubscribe,
            server_id = ServerId,
            identity = nats_gateway_kv_kept:identity(Client)
        },
        clientinfo = ClientInfo,
        clientid = ClientId,
        mountpoint = Mountpoint,
        authz = nats_gateway_emqx_authz:new(Context, ClientInfo, Mountpoint)
    },
    Info = #{
        conninfo => ConnInfo,
        conn_state => connected,
        clientinfo => ClientInfo,
        session => session(ConnInfo)
    },
    ok = emqx_gateway_cm:insert_channel_info(?GATEWAY, ClientId, Info, stats(#{}, Host)),
    Host.

%% -------------------------------------------------------------------------------------------
%% Publish

-spec publish([#pub{}], publish_options(), host()) ->
    {ok, [{pos_integer(), nats_gateway_host:rejection()}], host()}
    | {wait, host()}
    | {stop, nats_gateway_host:close_reason(), host()}.
publish(Pubs, Options, Host = #host{sample = false}) ->
    publish(Pubs, 1, [], batch(1, Options), Host);
publish(Pubs, Options, Host = #host{sample = true}) ->
    Begin = erlang:monotonic_time(),
    Published = publish(Pubs, 1, [], batch(1, Options), Host#host{sample = false}),
    ok = nats_gateway_durations:add(publish, erlang:monotonic_time() - Begin),
    Published.

batch(First, Options = #{confirm := Confirm, no_responders := NoResponders}) ->
    #batch{
        options = Options,
        qos = qos(Confirm),
        no_responders = NoResponders,
        first = First,
        until = erlang:monotonic_time(microsecond) + ?MAX_SPENT_US,
        max_levels = nats_gateway_emqx_compat:max_topic_levels(),
        authz = nats_gateway_emqx_authz:batch()
    }.

qos(true) -> 1;
qos(false) -> 0.

publish([Pub | Pubs], Index, Rejections, Batch, Host) ->
    case publish_one(Pub, Batch, Host) of
        {ok, NHost} ->
            publish_more(Pubs, Index + 1, Rejections, Batch, NHost);
        {stop, Reason, NHost} ->
            {stop, Reason, received(Index + 1, Batch, NHost)};
        {Rejection, NHost} ->
            publish_more(Pubs, Index + 1, [{Index, Rejection} | Rejections], Batch, NHost)
    end.

publish_more([], Index, Rejections, Batch, Host) ->
    {ok, lists:reverse(Rejections), received(Index, Batch, Host)};
publish_more(Pubs, Index, Rejections, Batch = #batch{options = Options}, Host) ->
    case takes_long(Index, Batch, Host) of
        false ->
            publish(Pubs, Index, Rejections, Batch, Host);
        true ->
            self() ! {?MODULE, publish},
            NHost = received(Index, Batch, Host),
            {wait, NHost#host{publishing = {Pubs, Index, Options, Rejections}, spent = 0}}
    end.

%% A look at the clock takes up to a tenth of a microsecond.
takes_long(_, _, #host{spent = Spent}) when Spent >= ?MAX_SPENT_US -> true;
takes_long(Index, #batch{until = Until}, _) when Index rem ?LOOK_AT_CLOCK =:= 0 ->
    erlang:monotonic_time(microsecond) >= Until;
takes_long(_, _, _) -> false.

publish_one(#pub{topic = invalid, reply_to = ReplyTo}, Batch, Host) ->
    {no_receiver(ReplyTo, Batch), Host};
publish_one(Pub = #pub{topic = Topic}, Batch = #batch{max_levels = MaxLevels}, Host) ->
    {Name, _} = nats_gateway_host:topic(Topic),
    case nats_gateway_host:is_too_deep(Name, MaxLevels) of
        true -> {denied, Host};
        false -> publish_one(Pub, Name, Batch, Host)
    end.

publish_one(Pub = #pub{headers = Block}, Name, Batch, Host = #host{login = #login{publish_properties = true}}) when
    Block =/= undefined
->
    Limits = (nats_gateway_emqx_compat:publish_limits())#{mountpoint => Host#host.mountpoint},
    case nats_gateway_publish_properties:take(Pub, Block, Limits) of
        none -> publish_plain(Pub, Name, Batch, Host);
        {Properties, NPub} -> publish_with(Properties, NPub, Pub, Name, Batch, Host);
        Refusal -> {Refusal, Host}
    end;
publish_one(Pub, Name, Batch, Host) ->
    publish_plain(Pub, Name, Batch, Host).

publish_plain(Pub, Name, Batch = #batch{qos = QoS}, Host) ->
    case may_publish(Name, QoS, Batch, Host) of
        {allow, NHost = #host{clientid = ClientId, login = #login{headers = Constant}}} ->
            Message = nats_gateway_emqx_message:make(Pub, QoS, {ClientId, Constant}),
            give_to_broker(Message, Pub, Batch, NHost);
        {deny, NHost} ->
            denied({denied, Pub#pub.subject}, NHost)
    end.

%% `Given' is the message as the client sent it.
publish_with(Properties = #properties{qos = Asked, retain = Retain}, Pub, Given, Name, Batch, Host) ->
    QoS = quality(Asked, Batch),
    Quality =
        case Retain of
            true -> {retain, QoS};
            false -> QoS
        end,
    case may_publish(Name, Quality, Batch, Host) of
        {allow, NHost = #host{clientid = ClientId, login = #login{headers = Constant}}} ->
            Message = nats_gateway_emqx_message:make(Pub, Properties, QoS, {ClientId, Constant}),
            give_to_broker(Message, Given, Batch, asked(QoS, NHost));
        {deny, NHost} ->
            denied({denied, Pub#pub.subject}, asked(QoS, NHost))
    end.

asked(QoS, Host = #host{asked = Asked}) -> Host#host{asked = [QoS | Asked]}.

quality(undefined, #batch{qos = QoS}) -> QoS;
quality(QoS, _) -> QoS.

give_to_broker(Message, #pub{reply_to = ReplyTo}, Batch, Host) ->
    case emqx_broker:safe_publish(Message) of
        disconnect ->
            {stop, authorization_violation, Host};
        Results ->
            case is_unclaimed(Results) of
                true -> {no_receiver(ReplyTo, Batch), Host};
                false -> {ok, skip_own(Host)}
            end
    end.

%% The broker may have chosen this client as the member. Then another member must get the message
%% before the next message is published.
skip_own(Host = #host{skips_own = false}) ->
    Host;
skip_own(Host = #host{early = Early, subs = Subs, clientid = ClientId}) ->
    Others = lists:filter(
        fun
            ({deliver, Filter, Message}) ->
                case key(Filter, Message, Host) of
                    Key = {Share, _} when Share =/= undefined, is_map_key(Key, Subs) ->
                        not is_own(Message, ClientId, maps:get(Key, Subs)) orelse
                            refuse(Filter, Key, Message) =/= none;
                    _ ->
                        true
                end;
            (_) ->
                true
        end,
        drain(?MAX_DELIVERIES)
    ),
    _ = Early =:= [] andalso Others =/= [] andalso (self() ! {?MODULE, early}),
    Host#host{early = lists:reverse(Others, Early)}.

is_own(Message, ClientId, #subscription{no_local = true}) -> emqx_message:from(Message) =:= ClientId;
is_own(_, _, _) -> false.

no_receiver(undefined, _) -> ok;
no_receiver(_, #batch{no_responders = true}) -> no_responders;
no_receiver(_, _) -> ok.

%% A route may be left from a subscriber that is gone.
-spec is_unclaimed(list()) -> boolean().
is_unclaimed([]) -> true;
is_unclaimed([{_, _, {error, no_subscribers}} | Results]) -> is_unclaimed(Results);
is_unclaimed(_) -> false.

denied(Reason, Host) ->
    case emqx:get_config([authorization, deny_action], ignore) of
        disconnect -> {stop, Reason, Host};
        _ -> {denied, Host}
    end.

may_publish(Topic, Quality, #batch{authz = Batch}, Host = #host{authz = Authz}) ->
    case nats_gateway_emqx_authz:known(Topic, Quality, Batch, Authz) of
        unknown ->
            timed(fun() ->
                {Decision, NAuthz} = nats_gateway_emqx_authz:ask(Topic, Quality, Batch, Authz),
                {Decision, Host#host{authz = NAuthz}}
            end);
        Decision ->
            {Decision, Host}
    end.

%% -------------------------------------------------------------------------------------------
%% Subscribe

-spec subscribe(nats_gateway_host:key(), Options, host()) ->
    {ok, host()} | {denied, host()} | {stop, permission_denied, host()}
when
    Options :: #{
        confirm := boolean(),
        no_local := boolean(),
        sid => nats_gateway_subscriptions:sid(),
        retained => false
    }.
subscribe(Key, Options, Host) -> timed(fun() -> ask(Key, Options, Host) end).

ask(Key, Options = #{confirm := Confirm, no_local := NoLocal}, Host) ->
    QoS = qos(Confirm),
    case may_subscribe(Key, QoS, Host) of
        allow ->
            ok = continue_watchers(Key, Host),
            subscribe(Key, QoS, NoLocal, sub_props(Options), Host);
        deny -> denied(permission_denied, Host);
        Refusal -> {Refusal, Host}
    end.

may_subscribe({_, Filter}, QoS, Host) ->
    case nats_gateway_host:is_too_deep(Filter, nats_gateway_emqx_compat:max_topic_levels()) of
        true -> too_many_tokens;
        false ->
            Action = #{action_type => subscribe, qos => QoS},
            nats_gateway_emqx_authz:authorize(Action, Filter, Host#host.authz)
    end.

%% The property has the name that the built-in gateway uses.
sub_props(#{retained := false}) -> #{rh => ?NO_RETAINED};
sub_props(#{sid := Sid}) -> #{sub_props => #{sid => Sid}};
sub_props(#{}) -> #{}.

subscribe(Key = {Share, Filter}, QoS, NoLocal, More, Host) ->
    #host{clientinfo = ClientInfo, login = #login{conninfo = ConnInfo, context = Context}} = Host,
    Defaults = #{
        qos => QoS,
        rh => retain_handling(Host),
        rap => 0,
        %% MQTT has no `no local' for shared subscriptions.
        nl => no_local(NoLocal, Share),
        is_new => true,
        sub_props => #{}
    },
    %% Unlike a merged map, this one shares its keys with those of the other subscriptions.
    Options = maps:fold(fun(Name, Value, Map) -> Map#{Name => Value} end, Defaults, More),
    Wanted = [{nats_gateway_emqx_topics:record(Share, unmount(Filter, Host)), Options}],
    case fold_hook('client.subscribe', ConnInfo, [ClientInfo, #{}], Wanted, Context) of
        [{Topic, NOptions} | _] ->
            Mounted = mount(Topic, Host),
            ok = emqx_broker:subscribe(Mounted, subscription_id(Host), NOptions),
            run_hook('session.subscribed', ConnInfo, [ClientInfo, Mounted, NOptions], Context),
            ok = nats_gateway_emqx_compat:send_retained(Mounted, NOptions),
            _ = Share =/= undefined andalso (self() ! {?MODULE, joined, Key}),
            {ok, subscribed(Key, Mounted, NOptions, NoLocal, Host)};
        _ ->
            {denied, Host}
    end.

retain_handling(#host{login = #login{retained = true}}) -> 0;
retain_handling(#host{login = #login{retained = false}}) -> ?NO_RETAINED.

no_local(true, undefined) -> 1;
no_local(_, _) -> 0.

mount(Topic, #host{mountpoint = Mountpoint}) ->
    nats_gateway_emqx_topics:mount(Topic, Mountpoint).

unmount(Filter, #host{mountpoint = Mountpoint}) ->
    nats_gateway_host:unmount(Filter, Mountpoint).

%% A process has one subscription id. It stays the same after a login with another name.
subscription_id(#host{clientid = ClientId}) ->
    case emqx_broker_helper:lookup_subid(self()) of
        undefined -> ClientId;
        Id -> Id
    end.

subscribed(Key, Topic, Options, NoLocal, Host = #host{subs = Subs, rewritten = Rewritten}) ->
    Sub = #subscription{topic = Topic, options = Options, no_local = NoLocal},
    {Share, _} = Key,
    NHost = Host#host{
        subs = Subs#{Key => Sub},
        skips_own = Host#host.skips_own orelse (NoLocal andalso Share =/= undefined)
    },
    case nats_gateway_emqx_topics:broker_key(Key, Topic) of
        Key -> NHost;
        BrokerKey -> NHost#host{rewritten = Rewritten#{BrokerKey => Key}}
    end.

%% Adds the time that `Fun' takes to the host that is the last element of its result.
timed(Fun) ->
    Started = erlang:monotonic_time(microsecond),
    Result = Fun(),
    Host = #host{spent = Spent} = element(tuple_size(Result), Result),
    Took = erlang:monotonic_time(microsecond) - Started,
    setelement(tuple_size(Result), Result, Host#host{spent = Spent + Took}).

-spec ready(host()) -> ok | {wait, host()}.
ready(#host{spent = Spent}) when Spent < ?MAX_SPENT_US ->
    ok;
ready(Host) ->
    self() ! {?MODULE, ready},
    {wait, Host}.

-spec subscribe_again([nats_gateway_host:key()], Options, host()) ->
    {ok, [{nats_gateway_host:key(), nats_gateway_host:refusal()}], host()}
    | {wait, host()}
    | {stop, permission_denied, host()}
when
    Options :: #{confirm := boolean(), no_local := boolean()}.
subscribe_again(Keys, Options, Host) -> again(Keys, Options, [], Host).

again([], _, Refused, Host) ->
    {ok, Refused, Host#host{again = none}};
again(Keys, Options, Refused, Host = #host{spent = Spent}) when Spent >= ?MAX_SPENT_US ->
    self() ! {?MODULE, again},
    {wait, Host#host{again = {Keys, Options, Refused}}};
again([Key | Keys], Options, Refused, Host) ->
    case timed(fun() -> change(Key, Options, Host) end) of
        {ok, NHost} -> again(Keys, Options, Refused, NHost);
        {denied, NHost} -> again(Keys, Options, [{Key, denied} | Refused], NHost);
        Stop -> Stop
    end.

%% A subscription that exists was allowed. It stays the same subscription, and the broker gets its
%% new options.
change(Key = {Share, _}, Options = #{no_local := NoLocal}, Host = #host{subs = Subs}) ->
    case Subs of
        #{Key := #subscription{topic = Topic, options = OldOptions, no_local = OldNoLocal}} when
            NoLocal =/= OldNoLocal
        ->
            NOptions = OldOptions#{nl => no_local(NoLocal, Share)},
            NOptions =:= OldOptions orelse
                emqx_broker:subscribe(Topic, subscription_id(Host), NOptions),
            {ok, subscribed(Key, Topic, NOptions, NoLocal, Host)};
        #{Key := _} ->
            {ok, Host};
        #{} ->
            ask(Key, Options, Host)
    end.

%% What has been delivered to this process by now still belongs to the client: in a shared group
%% nobody else gets it. It is in the mailbox before the message that this process sends itself.
-spec unsubscribe(nats_gateway_host:key(), host()) -> host().
unsubscribe(Key, Host = #host{again = {Keys, Options, Refused}}) ->
    %% A message has ended this subscription before it was subscribed again.
    leave(Key, Host#host{again = {lists:delete(Key, Keys), Options, Refused}});
unsubscribe(Key, Host) ->
    leave(Key, Host).

leave(Key, Host) ->
    {NHost} = timed(fun() -> {unsubscribe_now(Key, Host)} end),
    NHost.

unsubscribe_now(Key, Host = #host{subs = Subs, leaving = Leaving, clientinfo = ClientInfo}) ->
    #login{conninfo = ConnInfo, context = Context} = Host#host.login,
    case maps:take(Key, Subs) of
        {Sub = #subscription{topic = Topic, options = Options}, NSubs} ->
            {Share, Filter} = Key,
            Wanted = [{nats_gateway_emqx_topics:record(Share, unmount(Filter, Host)), #{}}],
            _ = fold_hook('client.unsubscribe', ConnInfo, [ClientInfo, #{}], Wanted, Context),
            _ = emqx_broker:unsubscribe(Topic),
            run_hook('session.unsubscribed', ConnInfo, [ClientInfo, Topic, Options], Context),
            self() ! {?MODULE, unsubscribed, Key},
            Host#host{subs = NSubs, leaving = Leaving#{Key => Sub}};
        error ->
            Host
    end.

unsubscribed(Key, Host = #host{subs = Subs, leaving = Leaving, rewritten = Rewritten}) ->
    NHost =
        case maps:take(Key, Leaving) of
            {#subscription{topic = Topic}, NLeaving} when not is_map_key(Key, Subs) ->
                Host#host{
                    leaving = NLeaving,
                    rewritten = maps:remove(
                        nats_gateway_emqx_topics:broker_key(Key, Topic), Rewritten
                    )
                };
            {_, NLeaving} ->
                Host#host{leaving = NLeaving};
            error ->
                Host
        end,
    {[{unsubscribed, Key}], NHost}.

-spec decline([{nats_gateway_host:key(), {Filter :: binary(), Message :: tuple()}}], host()) ->
    host().
decline(Deliveries, Host) ->
    lists:foreach(
        fun({{Group, _}, {Filter, Message}}) ->
            nats_gateway_emqx_quirks:give_to_another_member(Group, Filter, Message)
        end,
        Deliveries
    ),
    Host.

%% -------------------------------------------------------------------------------------------
%% Barrier

%% When a function of EMQX returns, EMQX has handled what it was given. What it has delivered to
%% this process by then is in the mailbox, before the message that this process sends itself.
-spec barrier(own | all, host()) -> {ok, host()} | {wait, host()}.
barrier(_, Host) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, 0} ->
            {ok, Host};
        _ ->
            self() ! {?MODULE, barrier},
            {wait, Host}
    end.

%% -------------------------------------------------------------------------------------------
%% Messages

-spec handle_info(term(), host()) -> {[nats_gateway_host:event()], host()} | ignore.
handle_info({deliver, _, _} = Deliver, Host) ->
    handle_messages([Deliver], Host);
handle_info({?MODULE, early}, Host) ->
    handle_messages([], Host);
handle_info({?MODULE, barrier}, Host) ->
    {[barrier], Host};
handle_info({?MODULE, ready}, Host) ->
    {[ready], Host#host{spent = 0}};
handle_info({?MODULE, publish}, Host = #host{publishing = {Pubs, Index, Options, Rejections}}) ->
    Batch = batch(Index, Options),
    case publish(Pubs, Index, Rejections, Batch, Host#host{publishing = none}) of
        {ok, NRejections, NHost} -> {[{published, NRejections}], NHost};
        {wait, NHost} -> {[], NHost};
        {stop, Reason, NHost} -> {[{close, Reason}], NHost}
    end;
handle_info({?MODULE, again}, Host = #host{again = {Keys, Options, Refused}}) ->
    case again(Keys, Options, Refused, Host#host{spent = 0}) of
        {ok, NRefused, NHost} -> {[{subscribed_again, NRefused}], NHost};
        {wait, NHost} -> {[], NHost};
        {stop, Reason, NHost} -> {[{close, Reason}], NHost}
    end;
handle_info({?MODULE, joined, Key}, Host) ->
    {[{joined, Key}], Host};
handle_info({?MODULE, unsubscribed, Key}, Host) ->
    unsubscribed(Key, Host);
handle_info({nats_gateway_kv_consumer, filters, Watcher, Topic, Filters}, Host) ->
    {[], continue_watcher(Watcher, Topic, Filters, Host)};
handle_info(clean_authz_cache, Host) ->
    ok = emqx_authz_cache:empty_authz_cache(),
    {[], Host#host{authz = nats_gateway_emqx_authz:forget(Host#host.authz)}};
handle_info({shutdown, _}, Host) ->
    {[{close, kicked}], Host};
%% EMQX's automatic subscriptions for clients that connect. The built-in gateway does not have them.
handle_info({subscribe, Filters}, Host = #host{login = #login{auto_subscribe = true}}) when is_list(Filters) ->
    {[{call, {subscribe, Topic, Options}} || {Topic, Options} <- Filters], Host};
handle_info(_, _) ->
    ignore.

-spec handle_messages([term()], host()) -> {[nats_gateway_host:event()], host()}.
handle_messages(Messages, Host = #host{early = Early}) ->
    More = drain(?MAX_DELIVERIES - length(Messages)),
    handle_in_order(lists:reverse(Early, Messages ++ More), [], Host#host{early = []}).

handle_in_order([], Events, Host) ->
    {Events, Host};
handle_in_order([{deliver, _, _} | _] = Messages, Events, Host) ->
    {Delivers, Rest} = lists:splitwith(fun is_deliver/1, Messages),
    case deliveries(Delivers, Host) of
        [] -> handle_in_order(Rest, Events, Host);
        Deliveries -> handle_in_order(Rest, Events ++ [{deliver, Deliveries}], Host)
    end;
handle_in_order([{?MODULE, early} | Messages], Events, Host) ->
    handle_in_order(Messages, Events, Host);
handle_in_order([Message | Messages], Events, Host) ->
    case handle_info(Message, Host) of
        ignore -> handle_in_order(Messages, Events, Host);
        {More, NHost} -> handle_in_order(Messages, Events ++ More, NHost)
    end.

is_deliver({deliver, _, _}) -> true;
is_deliver(_) -> false.

%% Takes the deliveries that wait in the mailbox, and the marks for the end of a plain subscription
%% between them, because EMQX sends some deliveries after such a mark. The other marks may come
%% late. While EMQX adds or removes a member of a group, a later mark even loses fewer messages (see
%% `nats_gateway_subscriptions').
drain(N) when N =< 0 ->
    [];
drain(N) ->
    receive
        {deliver, _, _} = Deliver -> [Deliver | drain(N - 1)];
        {?MODULE, unsubscribed, {undefined, _}} = Mark -> [Mark | drain(N - 1)]
    after 0 -> []
    end.

deliveries(Delivers, Host = #host{clientinfo = ClientInfo, login = #login{conninfo = ConnInfo}}) ->
    Hook =
        case nats_gateway_emqx_compat:has_callbacks('message.delivered') of
            true ->
                fun(Message) ->
                    nats_gateway_emqx_compat:fold_hook(
                        'message.delivered', ConnInfo, [ClientInfo], Message
                    )
                end;
            false ->
                none
        end,
    Deliveries = deliveries(Delivers, Hook, Host),
    ok = nats_gateway_emqx_metrics:delivered(length(Deliveries), context(Host)),
    Deliveries.

deliveries([], _, _) ->
    [];
deliveries([{deliver, Filter, Message} | Delivers], Hook, Host) ->
    case recipient(Filter, Message, Host) of
        none ->
            deliveries(Delivers, Hook, Host);
        Key = {Share, _} ->
            Id = message_id(Share, Filter, Message),
            Seen = delivered(Hook, Message),
            Delivery = nats_gateway_emqx_message:delivery(Key, Seen, Id),
            [shown(Seen, Delivery, Host) | deliveries(Delivers, Hook, Host)]
    end.

shown(_, Delivery, #host{login = #login{show_properties = false}}) ->
    Delivery;
shown(Message, Delivery = #delivery{headers = Headers}, _) ->
    Facts = nats_gateway_emqx_message:facts(Message),
    Delivery#delivery{headers = nats_gateway_publish_properties:show(Facts, Headers)}.

%% Only copies for shared subscriptions have an id, because only those can be given to another
%% member.
message_id(undefined, _, _) -> undefined;
message_id(_, Filter, Message) -> {emqx_message:id(Message), {Filter, Message}}.

delivered(none, Message) -> Message;
delivered(Hook, Message) -> Hook(Message).

%% The key of the subscription, unless it is gone by now, or wants no message of its own client. If
%% the copy was assigned to a member of a group, another member gets it: a publisher may have chosen
%% this member before it left, and sends afterwards.
recipient(Filter, Message, Host = #host{subs = Subs, leaving = Leaving, clientid = ClientId}) ->
    Key = key(Filter, Message, Host),
    case maps:get(Key, Subs, maps:get(Key, Leaving, none)) of
        none ->
            refuse(Filter, Key, Message);
        Sub ->
            case is_own(Message, ClientId, Sub) of
                true -> refuse(Filter, Key, Message);
                false -> Key
            end
    end.

refuse(_, {undefined, _}, _) ->
    none;
refuse(Filter, {Group, _}, Message) ->
    ok = nats_gateway_emqx_quirks:give_to_another_member(Group, Filter, Message),
    none.

key(Filter, Message, #host{rewritten = Rewritten}) ->
    Key =
        case emqx_message:get_headers(Message) of
            #{redispatch_to := {Group, _}} -> {Group, Filter};
            _ -> {undefined, Filter}
        end,
    case Rewritten of
        #{Key := Ours} -> Ours;
        #{} -> Key
    end.

%% -------------------------------------------------------------------------------------------
%% Management

-spec handle_call(term(), nats_gateway_host:channel(), host()) ->
    {term(), [nats_gateway_host:event()], host()}.
handle_call(kick, _, Host) ->
    {ok, [{close, kicked}], Host};
handle_call(discard, _, Host) ->
    {ok, [{close, {error, discarded}}], Host};
%% NATS has no session that a client could take over.
handle_call({takeover, 'begin'}, _, Host) ->
    {#{}, [], Host};
handle_call({takeover, 'end'}, _, Host) ->
    {[], [{close, {error, takenover}}], Host};
handle_call(subscriptions, #{sids := Sids}, Host = #host{subs = Subs}) ->
    Listed = [
        {Topic, maps:merge(Options, sub_props(first(Sids(Key))))}
     || {Key, #subscription{topic = Topic, options = Options}} <- maps:to_list(Subs)
    ],
    {{ok, Listed}, [], Host};
handle_call({subscribe, Topic, Options}, #{may_subscribe := MaySubscribe}, Host) ->
    case nats_gateway_emqx_topics:parse(Topic, Host#host.mountpoint) of
        {ok, Key, Parsed} -> add(Key, maps:merge(Options, Parsed), MaySubscribe, Host);
        error -> {{error, <<"no valid topic filter">>}, [], Host}
    end;
handle_call({unsubscribe, Topic}, _, Host = #host{subs = Subs}) ->
    %% EMQX's list of the subscriptions shows topics with the mountpoint.
    Mountpoints = [Host#host.mountpoint, <<>>],
    Parsed = [nats_gateway_emqx_topics:parse(Topic, Mountpoint) || Mountpoint <- Mountpoints],
    Keys = lists:usort([Key || {ok, Key, _} <- Parsed, is_map_key(Key, Subs)]),
    {ok, [{removed, Key} || Key <- Keys], lists:foldl(fun unsubscribe/2, Host, Keys)};
handle_call(stats, _, Host) ->
    {stats(#{}, Host), [], Host};
handle_call(_, _, Host) ->
    {ignored, [], Host}.

first([]) -> #{};
first(Sids) -> #{sid => hd(Sids)}.

%% The subscription belongs to the client like one that it makes itself, so the client must be
%% allowed to have it.
add(Key, _, _, Host = #host{subs = Subs}) when is_map_key(Key, Subs) ->
    {{error, <<"the client has this subscription already">>}, [], Host};
add(Key, Options, MaySubscribe, Host) ->
    QoS = maps:get(qos, Options, 0),
    case MaySubscribe(Key) andalso may_subscribe(Key, QoS, Host) of
        allow -> added(Key, subscribe(Key, QoS, false, maps:without([nl], Options), Host));
        too_many_tokens -> {{error, <<"too many topic levels">>}, [], Host};
        _ -> {{error, not_authorized}, [], Host}
    end.

added(Key, {ok, Host = #host{subs = Subs}}) ->
    #{Key := #subscription{topic = Topic, options = Options}} = Subs,
    {{ok, {Topic, Options}}, [{added, Key}], Host};
added(_, {denied, Host}) ->
    {{error, not_authorized}, [], Host}.

-spec report(nats_gateway_host:statistics(), host()) -> host().
report(Statistics, Host = #host{clientid = ClientId, reported = Old}) ->
    Kinds = maps:get(operations, Statistics, []),
    ok = nats_gateway_emqx_metrics:count_operations(Kinds, context(Host)),
    In = Old#reported.operations_received + lists:sum([N || {{received, _}, N} <- Kinds]),
    Out = Old#reported.operations_sent + lists:sum([N || {{sent, _}, N} <- Kinds]),
    Stats = stats(Statistics#{operations_received => In, operations_sent => Out}, Host),
    _ = emqx_gateway_cm:do_set_chan_stats(?GATEWAY, ClientId, self(), Stats),
    #reported{octets_received = OldReceived, octets_sent = OldSent} = Old,
    #{octets_received := Received, octets_sent := Sent} =
        maps:merge(#{octets_received => OldReceived, octets_sent => OldSent}, Statistics),
    count('bytes.received', Received - OldReceived, Host),
    count('bytes.sent', Sent - OldSent, Host),
    Host#host{
        reported = #reported{
            octets_received = Received,
            octets_sent = Sent,
            operations_received = In,
            operations_sent = Out
        },
        sample = nats_gateway_census:is_on()
    }.

stats(Statistics, #host{subs = Subs}) ->
    nats_gateway_emqx_metrics:statistics(Statistics, map_size(Subs)).

-spec ask_server(nats_gateway_host:server_request()) -> ok | no_responders.
ask_server(Request) -> nats_gateway_monitor_system:ask(Request).

%% -------------------------------------------------------------------------------------------
%% The key/value store

%% EMQX's authorization decides here, because its cache is in this process.
-spec ask_store(#pub{}, nats_gateway_kv_bucket:buckets(), host()) -> {pass | no_responders, host()}.
ask_store(Pub = #pub{reply_to = ReplyTo, reply_topic = ReplyTopic}, Buckets, Host) when
    is_binary(ReplyTopic); ReplyTo =:= undefined
->
    #pub{subject = Subject, headers = Headers, payload = Payload} = Pub,
    {Action, Rights} = nats_gateway_kv_request:read(
        Subject, Headers, Payload, Host#host.mountpoint, Buckets
    ),
    case refused_right(Rights, Host) of
        {none, NHost} -> pass_to_store(Action, ReplyTopic, NHost);
        {Right, NHost} -> pass_to_store(nats_gateway_kv_request:deny(Action, Right), ReplyTopic, NHost)
    end;
ask_store(_, _, Host) ->
    {no_responders, Host}.

refused_right([], Host) ->
    {none, Host};
refused_right([{Kind, Topic} | Rights], Host) ->
    {Decision, NHost} = timed(fun() -> {store_right(Kind, Topic, Host), Host} end),
    case Decision of
        allow -> refused_right(Rights, NHost);
        _ -> {{Kind, unmount(Topic, Host)}, NHost}
    end.

store_right(subscribe, Filter, Host) ->
    may_subscribe({undefined, Filter}, 1, Host);
store_right(publish, Topic, #host{authz = Authz}) ->
    case nats_gateway_host:is_too_deep(Topic, nats_gateway_emqx_compat:max_topic_levels()) of
        true ->
            deny;
        false ->
            Action = #{action_type => publish, qos => 1, retain => true},
            nats_gateway_emqx_authz:authorize(Action, Topic, Authz)
    end.

%% The watchers of an earlier connection, where the client has subscribed to the same subject again. Its
%% rights may have changed. A watcher may be busy, so the client does not wait for what it says.
continue_watchers({undefined, Topic}, #host{login = #login{identity = Identity}}) when Identity =/= none ->
    lists:foreach(
        fun nats_gateway_kv_consumer:ask_for_filters/1, nats_gateway_kv_kept:find(Identity, Topic)
    );
continue_watchers(_, _) ->
    ok.

%% The client may have ended the subscription since, or have another login.
continue_watcher(Watcher, Topic, Filters, Host = #host{subs = Subs, login = #login{identity = Identity}}) ->
    IsWanted =
        Identity =/= none andalso is_map_key({undefined, Topic}, Subs) andalso
            lists:member(Watcher, nats_gateway_kv_kept:find(Identity, Topic)),
    case IsWanted andalso refused_right([{subscribe, Filter} || Filter <- Filters], Host) of
        {none, NHost} ->
            {pass, Claiming} = pass_to_store({claim, Watcher}, undefined, NHost),
            Claiming;
        {_, NHost} -> NHost;
        false -> Host
    end.

pass_to_store({answer, no_responders}, _, Host) ->
    {no_responders, Host};
pass_to_store(Action, ReplyTopic, Host = #host{kv = none}) ->
    #host{clientid = ClientId, mountpoint = Mountpoint, login = Login} = Host,
    #login{headers = Headers, server_id = ServerId, identity = Identity} = Login,
    Session = nats_gateway_kv_session:new(#{
        client => self(),
        identity => Identity,
        store => nats_gateway_emqx_kv:new(ClientId, Headers, Mountpoint),
        leader => ServerId,
        max_consumers => ?MAX_WATCHERS
    }),
    pass_to_store(Action, ReplyTopic, Host#host{kv = Session});
pass_to_store(Action, ReplyTopic, Host = #host{kv = Session}) ->
    case nats_gateway_kv_session:submit(Action, ReplyTopic, Session) of
        ok -> {pass, Host};
        gone -> pass_to_store(Action, ReplyTopic, Host#host{kv = none})
    end.

%% -------------------------------------------------------------------------------------------
%% The end

-spec undelivered([term()], host()) -> host().
undelivered(Messages, Host = #host{early = Early}) ->
    Host#host{early = lists:reverse([M || M <- Messages, is_deliver(M)], Early)}.

%% The process stays alive: after `login_again' for the next login, otherwise until the client has
%% closed its side of the connection. Its subscriptions would stay, too.
-spec disconnect(term(), host()) -> ok.
disconnect(Reason, Host = #host{clientid = ClientId, clientinfo = ClientInfo}) ->
    _ = emqx_broker:subscriber_down(self()),
    #host{kv = Kv, login = Login} = Host,
    #login{conninfo = ConnInfo, context = Context, presence = Presence} = Login,
    _ = Kv =/= none andalso end_store(Reason, Kv, Host),
    NConnInfo = ConnInfo#{disconnected_at => erlang:system_time(millisecond)},
    Name = reason(Reason, ConnInfo),
    case Name of
        login_again ->
            %% EMQX's own cache would stay, too. It does not know that its decisions were for
            %% another user.
            ok = emqx_authz_cache:empty_authz_cache();
        _ ->
            ok = give_away(Host),
            _ = emqx_flapping:detect(ClientInfo),
            ok
    end,
    Name =:= slow_consumer andalso count('clients.slow_consumer', 1, Host),
    ok = emqx_gateway_cm:unregister_channel(?GATEWAY, ClientId),
    run_hook('client.disconnected', NConnInfo, [ClientInfo, Name, NConnInfo], Context),
    run_hook('session.terminated', NConnInfo, [ClientInfo, Name, session(ConnInfo)], Context),
    nats_gateway_emqx_presence:disconnected(Presence, Login#login.headers).

end_store(login_again, Kv, _) ->
    nats_gateway_kv_session:stop(Kv);
end_store(_, Kv, #host{subs = Subs}) ->
    nats_gateway_kv_session:leave([Topic || {undefined, Topic} <- maps:keys(Subs)], Kv).

%% The client is sent nothing more, so what its groups have given to it goes to other members.
give_away(Host = #host{early = Early}) ->
    ok = await_left(Host),
    {message_queue_len, Waiting} = process_info(self(), message_queue_len),
    lists:foreach(
        fun({deliver, Filter, Message}) ->
            case emqx_message:get_headers(Message) of
                #{redispatch_to := {Group, _}} ->
                    nats_gateway_emqx_quirks:give_to_another_member(Group, Filter, Message);
                #{} ->
                    ok
            end
        end,
        lists:filter(fun is_deliver/1, lists:reverse(Early, drain(Waiting)))
    ).

%% EMQX takes this process out of its groups a moment later, and could choose this member until
%% then.
await_left(#host{subs = Subs}) ->
    case [Topic || #subscription{topic = Topic} <- maps:values(Subs), is_tuple(Topic)] of
        [] ->
            ok;
        [Topic | _] ->
            {Group, Filter} = nats_gateway_emqx_topics:key(Topic),
            nats_gateway_emqx_quirks:await_left(Group, Filter)
    end.

%% One word for the rule engine: the same as EMQX's, if EMQX has one.
reason({shutdown, Reason}, ConnInfo) -> reason(Reason, ConnInfo);
reason(client_closed, #{socktype := Type}) when Type =:= ssl; Type =:= wss -> ssl_closed;
reason(Reason, _) -> nats_gateway_ending:emqx_reason(Reason).

%% -------------------------------------------------------------------------------------------
%% Hooks and metrics

count(Name, N, Host) -> nats_gateway_emqx_metrics:count(Name, N, context(Host)).

context(#host{login = #login{context = Context}}) -> Context.

%% Counts the publishes before the one with this index.
received(Index, #batch{first = First, qos = QoS}, Host = #host{asked = []}) ->
    ok = nats_gateway_emqx_metrics:received(Index - First, QoS, context(Host)),
    Host;
received(Index, Batch, Host = #host{asked = Asked}) ->
    Context = context(Host),
    lists:foreach(fun(QoS) -> nats_gateway_emqx_metrics:received(1, QoS, Context) end, Asked),
    received(Index - length(Asked), Batch, Host#host{asked = []}).
