%% What nats-server's monitoring endpoints tell, in its field names and units (nats-server 2.10,
%% server/monitor.go): times are RFC 3339, durations nanoseconds where nats-server has them so.
%%
%% `in' is from the clients' to the gateway. Octets are those of the wire, with control lines and, over
%% TLS or WebSocket, what these add; nats-server counts payloads.
-module(nats_gateway_monitor_facts).

-export([varz/3]).
-export([connz/2]).
-export([pids/1]).
-export([subsz/2]).
-export([healthz/1]).
-export([statsz/1]).
-export([server_info/1]).
-export([uptime/1]).
-export([now/0]).
-export([time/1]).
-export([duration/1]).

-compile({no_auto_import, [now/0]}).

-include("nats_gateway_census.hrl").

-export_type([gateway/0, connz_options/0, sort/0]).

-type gateway() :: #{
    config := nats_gateway_config:config(),
    listeners := [
        #{
            name := binary(),
            type := tcp | ssl | ws | wss,
            bind := {inet:ip_address(), inet:port_number()},
            max_connections := non_neg_integer() | infinity
        }
    ],
    %% milliseconds of the system's time
    started := integer(),
    health := fun(() -> ok | {error, Text :: iodata()}),
    %% whether the broker is this node; if it is not said, it is not
    broker => remote | local
}.

-type sort() ::
    cid | start | subs | pending | msgs_to | msgs_from | bytes_to | bytes_from | last | idle | uptime
    | rtt | stop | reason.

-type connz_options() :: #{
    sort := sort(),
    offset := non_neg_integer(),
    limit := pos_integer(),
    state := open | closed | any,
    %% whether, and with how much detail, the subscriptions are listed
    subs := none | subjects | detail,
    %% whether users are named
    auth := boolean(),
    cid => pos_integer(),
    user => binary(),
    acc => binary(),
    filter_subject => binary()
}.

%% Clients are asked together, and those that take longer are left out of the details.
-define(TIMEOUT_MS, 2000).
%% So many are asked at a time: their answers wait in one mailbox.
-define(AT_ONCE, 1000).

%% Most subscriptions that are listed in one answer, or wait here for being listed.
-define(MAX_SUBSCRIPTIONS, 100_000).

-define(NS_PER_MS, 1_000_000).

%% Bind: the monitoring port, if there is one.
-spec varz(HttpRequests :: #{binary() => non_neg_integer()}, Bind, gateway()) -> map() when
    Bind :: undefined | {inet:ip_address(), inet:port_number()}.
varz(Requests, Bind, #{config := Config, listeners := Listeners, started := Started}) ->
    #{
        server_id := ServerId,
        server_name := ServerName,
        auth_required := AuthRequired,
        max_payload_size := MaxPayload,
        max_control_line := MaxControlLine,
        max_pending := MaxPending,
        default_heartbeat_interval := PingInterval,
        authentication_timeout := AuthTimeout,
        send_timeout := SendTimeout
    } = Config,
    Rows = nats_gateway_census:open(),
    #{connections := TotalConnections, ended := Ended} = Totals = nats_gateway_census:totals(),
    Now = now_ms(),
    {MonitorHost, MonitorPort} = monitor_address(Bind),
    {Host, Port} = address(Listeners),
    SlowConsumers = maps:get(slow_consumer, Ended, 0),
    (limits(Listeners))#{
        server_id => ServerId,
        server_name => ServerName,
        version => nats_gateway_system:version(),
        proto => 1,
        go => list_to_binary("erlang" ++ erlang:system_info(otp_release)),
        host => Host,
        port => Port,
        auth_required => AuthRequired,
        tls_required => Listeners =/= [] andalso lists:all(fun uses_tls/1, Listeners),
        ping_interval => nanoseconds(PingInterval),
        ping_max => 1,
        http_host => MonitorHost,
        http_port => MonitorPort,
        http_base_path => <<>>,
        https_port => 0,
        auth_timeout => (AuthTimeout + 999) div 1000,
        max_control_line => MaxControlLine,
        max_payload => MaxPayload,
        max_pending => MaxPending,
        write_deadline => nanoseconds(SendTimeout),
        start => time(Started),
        now => time(Now),
        uptime => uptime(Now - Started),
        mem => erlang:memory(total),
        cores => erlang:system_info(logical_processors_available),
        gomaxprocs => erlang:system_info(schedulers_online),
        cpu => cpu(Now - Started),
        connections => length(Rows),
        total_connections => TotalConnections,
        routes => 0,
        remotes => 0,
        leafnodes => 0,
        in_msgs => maps:get(messages_received, Totals),
        out_msgs => maps:get(messages_sent, Totals),
        in_bytes => maps:get(octets_received, Totals),
        out_bytes => maps:get(octets_sent, Totals),
        slow_consumers => SlowConsumers,
        slow_consumer_stats =>
            #{clients => SlowConsumers, routes => 0, gateways => 0, leafs => 0},
        subscriptions => lists:sum([figure(subscriptions, Row) || Row <- Rows]),
        http_req_stats => Requests,
        config_load_time => time(Started),
        cluster => #{},
        gateway => #{},
        leaf => #{},
        mqtt => #{},
        websocket => #{},
        jetstream => #{}
    }.

monitor_address(undefined) -> {<<>>, 0};
monitor_address({Address, Port}) -> {nats_gateway_system:address(Address), Port}.

limits(Listeners) ->
    case [Max || #{max_connections := Max} <- Listeners, Max =:= infinity] of
        [] -> #{max_connections => lists:sum([Max || #{max_connections := Max} <- Listeners])};
        _ -> #{}
    end.

address([#{bind := {Host, Port}} | _]) -> {nats_gateway_system:address(Host), Port};
address([]) -> {<<>>, 0}.

uses_tls(#{type := Type}) -> Type =:= ssl orelse Type =:= wss.

nanoseconds(infinity) -> 0;
nanoseconds(Ms) -> Ms * ?NS_PER_MS.

%% Per cent of one core, on average since the start: a whole number.
cpu(Uptime) ->
    {Runtime, _} = erlang:statistics(runtime),
    Runtime * 100 div max(1, Uptime).

%% What nats-server tells on `$SYS' of how it does.
-spec statsz(gateway()) -> map().
statsz(#{started := Started}) ->
    Rows = nats_gateway_census:open(),
    #{connections := TotalConnections, ended := Ended} = Totals = nats_gateway_census:totals(),
    #{
        start => time(Started),
        mem => erlang:memory(total),
        cores => erlang:system_info(logical_processors_available),
        cpu => cpu(now_ms() - Started),
        connections => length(Rows),
        total_connections => TotalConnections,
        %% All clients are in one broker.
        active_accounts => 1,
        subscriptions => lists:sum([figure(subscriptions, Row) || Row <- Rows]),
        sent => #{
            msgs => maps:get(messages_sent, Totals), bytes => maps:get(octets_sent, Totals)
        },
        received => #{
            msgs => maps:get(messages_received, Totals), bytes => maps:get(octets_received, Totals)
        },
        slow_consumers => maps:get(slow_consumer, Ended, 0)
    }.

%% Who answers on `$SYS'.
-spec server_info(gateway()) -> map().
server_info(#{config := Config, listeners := Listeners}) ->
    {Host, _} = address(Listeners),
    nats_gateway_system:server_info(Host, Config).

-spec connz(connz_options(), gateway()) -> map().
connz(Options, #{config := #{server_id := ServerId}}) ->
    #{offset := Offset, limit := Limit} = Options,
    All = sorted(rows(Options), Options),
    Listed = lists:sublist(lists:nthtail(min(Offset, length(All)), All), Limit),
    Now = now_ms(),
    #{
        server_id => ServerId,
        now => time(Now),
        num_connections => length(Listed),
        total => length(All),
        offset => Offset,
        limit => Limit,
        connections => [connection(Each, Now, Options) || Each <- described_within(Listed, Options)]
    }.

%% The processes of the clients that are open and have this cid, or this user.
-spec pids(#{cid => pos_integer(), user => binary()}) -> [pid()].
pids(Wanted) ->
    [Pid || {#census{pid = Pid}, _, open} <- rows(Wanted#{state => open, subs => none})].

%% {Row, Description or what there is to ask, end}
rows(Options = #{state := State}) ->
    Open = [{Row, unknown, open} || State =/= closed, Row <- nats_gateway_census:open()],
    Closed = [
        {Row, Description, {Reason, Stop}}
     || State =/= open, {Row, Description, Reason, Stop} <- nats_gateway_census:closed()
    ],
    Wanted = [Each || Each = {#census{cid = Cid}, _, _} <- Open ++ Closed, is_cid(Cid, Options)],
    case maps:with([user, acc, filter_subject], Options) of
        Filters when map_size(Filters) =:= 0 -> Wanted;
        Filters -> [Each || Each <- described(Wanted, Options), is_wanted(Each, maps:to_list(Filters))]
    end.

is_cid(Cid, #{cid := Wanted}) -> Cid =:= Wanted;
is_cid(_, _) -> true.

%% Who does not answer cannot be said to be one of them.
is_wanted({_, unknown, _}, _) ->
    false;
is_wanted({_, Description = #{user := User, account := Account}, _}, Filters) ->
    lists:all(
        fun
            ({user, Wanted}) -> User =:= Wanted;
            ({acc, Wanted}) -> Account =:= Wanted;
            ({filter_subject, Wanted}) ->
                lists:any(
                    fun(#{subject := Subject}) -> nats_gateway_nif:subject_matches(Subject, Wanted) end,
                    maps:get(subscriptions_list, Description, [])
                )
        end,
        Filters
    ).

sorted(Rows, #{sort := Sort}) ->
    Now = now_ms(),
    lists:sort(fun(A, B) -> sort_key(Sort, A, Now) =< sort_key(Sort, B, Now) end, Rows).

%% nats-server sorts numbers of traffic downwards; the cid makes the order a total one.
sort_key(cid, {#census{cid = Cid}, _, _}, _) -> Cid;
sort_key(start, {#census{start = Start, cid = Cid}, _, _}, _) -> {Start, Cid};
sort_key(subs, Each, _) -> downwards(subscriptions, Each);
sort_key(pending, Each, _) -> downwards(pending, Each);
sort_key(msgs_to, Each, _) -> downwards(messages_sent, Each);
sort_key(msgs_from, Each, _) -> downwards(messages_received, Each);
sort_key(bytes_to, Each, _) -> downwards(octets_sent, Each);
sort_key(bytes_from, Each, _) -> downwards(octets_received, Each);
sort_key(rtt, Each, _) -> downwards(rtt, Each);
sort_key(last, {#census{active = Active, cid = Cid}, _, _}, _) -> {-Active, Cid};
sort_key(idle, {#census{active = Active, cid = Cid}, _, _}, _) -> {Active, Cid};
sort_key(uptime, {#census{start = Start, cid = Cid}, _, open}, Now) -> {Start - Now, Cid};
sort_key(uptime, {#census{start = Start, cid = Cid}, _, {_, Stop}}, _) -> {Start - Stop, Cid};
sort_key(stop, {#census{cid = Cid}, _, open}, _) -> {0, Cid};
sort_key(stop, {#census{cid = Cid}, _, {_, Stop}}, _) -> {-Stop, Cid};
sort_key(reason, {#census{cid = Cid}, _, open}, _) -> {'', Cid};
sort_key(reason, {#census{cid = Cid}, _, {Reason, _}}, _) -> {Reason, Cid}.

downwards(Kind, {Row = #census{cid = Cid}, _, _}) -> {-figure(Kind, Row), Cid}.

figure(Kind, #census{figures = Figures}) -> maps:get(Kind, Figures, 0).

%% Clients beyond the subscriptions of an answer are listed without them.
described_within(Rows, Options) ->
    {With, Without} = within(Rows, length(Rows)),
    described(With, Options) ++ described(Without, Options#{subs := none}).

%% As many of them as may be asked for their subscriptions together: one at least.
within(Rows, Clients) -> within(Rows, Clients, 0, []).

within([Each = {Row, _, _} | Rest] = Rows, Clients, Sum, Acc) ->
    case Sum + figure(subscriptions, Row) of
        NSum when Acc =:= []; Clients > 0, NSum =< ?MAX_SUBSCRIPTIONS ->
            within(Rest, Clients - 1, NSum, [Each | Acc]);
        _ ->
            {lists:reverse(Acc), Rows}
    end;
within([], _, _, Acc) ->
    {lists:reverse(Acc), []}.

%% With what the clients say of themselves at this moment.
described(Rows, Options) ->
    What =
        case Options of
            #{filter_subject := _} -> subscriptions;
            #{subs := none} -> figures;
            #{subs := _} -> subscriptions
        end,
    described(Rows, What, now_ms() + ?TIMEOUT_MS).

described([], _, _) ->
    [];
described(Rows, What, Until) ->
    {Some, Rest} = within(Rows, ?AT_ONCE),
    Pids = [Pid || {#census{pid = Pid}, unknown, open} <- Some],
    Answers = nats_gateway_connection:describe(Pids, What, max(0, Until - now_ms())),
    answered(Some, Answers) ++ described(Rest, What, Until).

answered([{Row = #census{figures = Old}, unknown, open} | Rows], [Answer | Answers]) ->
    Described =
        case Answer of
            {ok, Figures, Description, Subscriptions} ->
                {
                    Row#census{figures = maps:merge(Old, Figures)},
                    Description#{subscriptions_list => Subscriptions},
                    open
                };
            gone ->
                {Row, unknown, open}
        end,
    [Described | answered(Rows, Answers)];
answered([Row | Rows], Answers) ->
    [Row | answered(Rows, Answers)];
answered([], []) ->
    [].

connection({Row, Description, End}, Now, Options) ->
    #census{cid = Cid, start = Start, active = Active} = Row,
    Known = #{
        cid => Cid,
        kind => <<"Client">>,
        start => time(Start),
        last_activity => time(Active),
        pending_bytes => figure(pending, Row),
        in_msgs => figure(messages_received, Row),
        out_msgs => figure(messages_sent, Row),
        in_bytes => figure(octets_received, Row),
        out_bytes => figure(octets_sent, Row),
        subscriptions => figure(subscriptions, Row)
    },
    All = [Known, rtt(Row), times(End, Start, Active, Now), details(Description, Options)],
    lists:foldl(fun maps:merge/2, #{}, All).

rtt(#census{figures = #{rtt := Rtt}}) -> #{rtt => duration(Rtt)};
rtt(_) -> #{}.

times(open, Start, Active, Now) ->
    #{uptime => uptime(Now - Start), idle => uptime(Now - Active)};
times({Reason, Stop}, Start, Active, _) ->
    #{
        uptime => uptime(Stop - Start),
        idle => uptime(Stop - Active),
        stop => time(Stop),
        reason => reason(Reason)
    }.

%% nats-server's words where it has them.
reason(client_closed) -> <<"Client Closed">>;
reason(authentication_timeout) -> <<"Authentication Timeout">>;
reason(authorization_violation) -> <<"Authentication Failure">>;
reason(stale_connection) -> <<"Stale Connection">>;
reason(slow_consumer) -> <<"Slow Consumer (Pending Bytes)">>;
reason(send_timeout) -> <<"Slow Consumer (Write Deadline)">>;
reason(maximum_connections_exceeded) -> <<"Maximum Connections Exceeded">>;
reason(maximum_subscriptions_exceeded) -> <<"Maximum Subscriptions Exceeded">>;
reason(maximum_payload_violation) -> <<"Maximum Message Payload Exceeded">>;
reason(maximum_control_line_exceeded) -> <<"Maximum Control Line Exceeded">>;
reason(unknown_protocol_operation) -> <<"Protocol Violation">>;
reason(user_authentication_expired) -> <<"Credentials Expired">>;
reason(account_authentication_expired) -> <<"Credentials Expired">>;
reason(drained) -> <<"Server Shutdown">>;
reason(kicked) -> <<"Kicked">>;
reason(Reason) -> atom_to_binary(Reason).

details(unknown, _) ->
    #{};
details(Description = #{peername := {Host, Port}, transport := Transport}, Options) ->
    Users =
        case Options of
            #{auth := true} ->
                #{user := User, account := Account} = Description,
                maps:filter(
                    fun(_, Value) -> Value =/= <<>> andalso Value =/= [] end,
                    (maps:with([jwt, issuer_key, name_tag, tags], Description))#{
                        authorized_user => User, account => Account
                    }
                );
            #{} ->
                #{}
        end,
    Subscriptions = maps:get(subscriptions_list, Description, []),
    Listed =
        case Options of
            #{subs := subjects} ->
                #{subscriptions_list => [Subject || #{subject := Subject} <- Subscriptions]};
            #{subs := detail} ->
                #{subscriptions_list_detail => [subscription(S, Description) || S <- Subscriptions]};
            #{} ->
                #{}
        end,
    Known = maps:merge(maps:with([name, lang, version], Description), tls(Description)),
    maps:merge(
        maps:merge(Known, Users),
        Listed#{
            ip => nats_gateway_system:address(Host),
            port => Port,
            type =>
                case Transport of
                    _ when Transport =:= ws; Transport =:= wss -> <<"websocket">>;
                    _ -> <<"nats">>
                end
        }
    ).

tls(#{tls := #{version := Version, cipher_suite := CipherSuite}}) ->
    #{tls_version => Version, tls_cipher_suite => CipherSuite};
tls(_) ->
    #{}.

subscription(#{sid := Sid, subject := Subject, queue_group := QueueGroup} = Subscription, #{account := Account}) ->
    #{delivered := Delivered, max := Max} = Subscription,
    maps:merge(
        #{account => Account, subject => Subject, sid => Sid, msgs => Delivered},
        maps:from_list(
            [{qgroup, QueueGroup} || QueueGroup =/= undefined] ++ [{max, Max} || Max =/= infinity]
        )
    ).

%% Subscriptions as the gateway has them: it has no cache, so nothing is said of one.
-spec subsz(Options, gateway()) -> map() when
    Options :: #{
        subs := boolean(),
        offset := non_neg_integer(),
        limit := pos_integer(),
        test => binary(),
        %% only subscriptions of its users are listed
        acc => binary()
    }.
subsz(Options = #{offset := Offset, limit := Limit}, #{config := #{server_id := ServerId}}) ->
    Rows = nats_gateway_census:open(),
    Sum = #{
        server_id => ServerId,
        now => time(now_ms()),
        num_subscriptions => lists:sum([figure(subscriptions, Row) || Row <- Rows]),
        num_cache => 0,
        num_inserts => 0,
        num_removes => 0,
        num_matches => 0,
        cache_hit_rate => 0,
        max_fanout => 0,
        avg_fanout => 0
    },
    case Options of
        #{subs := false} ->
            Sum;
        #{subs := true} ->
            Sorted = [{Row, unknown, open} || Row <- lists:keysort(#census.cid, Rows)],
            {Listed, Total} = listed(Sorted, Options, now_ms() + ?TIMEOUT_MS, {[], 0}),
            Sum#{
                total => Total,
                offset => Offset,
                limit => Limit,
                subscriptions_list => lists:reverse(Listed)
            }
    end.

listed([], _, _, Acc) ->
    Acc;
listed(Rows, Options, Until, Acc) ->
    {Some, Rest} = within(Rows, ?AT_ONCE),
    Described = described(Some, subscriptions, Until),
    NAcc = lists:foldl(fun(Each, Sum) -> list(Each, Options, Sum) end, Acc, Described),
    listed(Rest, Options, Until, NAcc).

list({_, unknown, _}, _, Acc) ->
    Acc;
list({_, #{account := Account}, _}, #{acc := Wanted}, Acc) when Account =/= Wanted ->
    Acc;
list({#census{cid = Cid}, Description = #{subscriptions_list := Subscriptions}, _}, Options, Acc) ->
    #{offset := Offset, limit := Limit} = Options,
    lists:foldl(
        fun(Subscription, {Listed, N}) ->
            case matches(Subscription, Options) of
                true when N >= Offset, N < Offset + Limit ->
                    {[(subscription(Subscription, Description))#{cid => Cid} | Listed], N + 1};
                true ->
                    {Listed, N + 1};
                false ->
                    {Listed, N}
            end
        end,
        Acc,
        lists:sort(Subscriptions)
    ).

matches(#{subject := Subject}, #{test := Test}) -> nats_gateway_nif:subject_matches(Subject, Test);
matches(_, _) -> true.

-spec healthz(gateway()) -> {200 | 503, map()}.
healthz(#{health := Health}) ->
    case Health() of
        ok ->
            {200, #{status => <<"ok">>}};
        {error, Text} ->
            {503, #{
                status => <<"unavailable">>, status_code => 503, error => iolist_to_binary(Text)
            }}
    end.

now_ms() -> erlang:system_time(millisecond).

-spec now() -> binary().
now() -> time(now_ms()).

-spec time(Ms :: integer()) -> binary().
time(Ms) ->
    list_to_binary(calendar:system_time_to_rfc3339(Ms, [{unit, millisecond}, {offset, "Z"}])).

%% As nats-server writes it: 1d2h3m4s.
-spec uptime(Ms :: integer()) -> binary().
uptime(Ms) ->
    S = max(0, Ms) div 1000,
    Parts = [
        {S div 31536000, "y"},
        {S div 86400 rem 365, "d"},
        {S div 3600 rem 24, "h"},
        {S div 60 rem 60, "m"},
        {S rem 60, "s"}
    ],
    Shown = lists:dropwhile(fun({N, Unit}) -> N =:= 0 andalso Unit =/= "s" end, Parts),
    iolist_to_binary([[integer_to_list(N), Unit] || {N, Unit} <- Shown]).

%% As Go writes it, with the digits that nats-server leaves: 312µs, 52.378929ms, 1m2.5s.
-spec duration(Ns :: non_neg_integer()) -> binary().
duration(Ns) when Ns < 1000 -> <<(integer_to_binary(Ns))/binary, "ns">>;
duration(Ns) when Ns < ?NS_PER_MS -> <<(integer_to_binary(Ns div 1000))/binary, "µs"/utf8>>;
duration(Ns) when Ns < 1000 * ?NS_PER_MS -> <<(decimal(Ns, ?NS_PER_MS))/binary, "ms">>;
duration(Ns) ->
    Minutes = Ns div (60_000 * ?NS_PER_MS),
    Seconds = decimal(Ns rem (60_000 * ?NS_PER_MS), 1000 * ?NS_PER_MS),
    case Minutes of
        0 -> <<Seconds/binary, "s">>;
        _ when Minutes < 60 -> iolist_to_binary(io_lib:format("~bm~ss", [Minutes, Seconds]));
        _ -> iolist_to_binary(io_lib:format("~bh~bm~ss", [Minutes div 60, Minutes rem 60, Seconds]))
    end.

%% Without zeros at the end.
decimal(N, Unit) ->
    case N rem Unit of
        0 ->
            integer_to_binary(N div Unit);
        Rest ->
            <<"1", Digits/binary>> = integer_to_binary(Unit + Rest),
            Fraction = string:trim(Digits, trailing, "0"),
            <<(integer_to_binary(N div Unit))/binary, ".", Fraction/binary>>
    end.
