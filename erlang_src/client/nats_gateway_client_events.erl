%% The events of nats-server's system account when clients come and go: `$SYS.ACCOUNT.<account>.CONNECT'
%% and `.DISCONNECT'. Clients that may ask below `$SYS.REQ.SERVER' get them for their subscriptions
%% below `$SYS.ACCOUNT'. These subscriptions are never at the broker, so that nobody else can publish
%% to them, and the broker need not allow them.
%%
%% The connections that watch are a group of the scope of `pg' that `nats_gateway_monitor_system' has
%% started, so all nodes of a cluster know them. Without any, a login and an end cost one look into a
%% table. An event goes straight to those that watch, and no answer is waited for: a connection that
%% cannot take them in time is a slow consumer like any other.
-module(nats_gateway_client_events).

-export([new/0]).
-export([is_watchable/2]).
-export([watch/2]).
-export([unwatch/2]).
-export([is_watched/2]).
-export([stop/1]).
-export([matching/2]).
-export([connected/1]).
-export([disconnected/4]).

-export_type([watched/0, facts/0]).

%% The filters of a client that watches.
-opaque watched() :: none | #{nats_gateway_host:key() => []}.

%% What an event is made of.
-type facts() :: #{
    client_id := pos_integer(),
    config := nats_gateway_config:config(),
    %% where the server listens
    host := inet:ip_address(),
    description := nats_gateway_channel:description()
}.

%% The scope, and the group of those that watch.
-define(SCOPE, nats_gateway_servers).
-define(GROUP, client_events).

-spec new() -> watched().
new() -> none.

%% Whether the events of a client with system access come for this key instead of what the broker has.
%% A member of a queue group gets what the broker has.
-spec is_watchable(nats_gateway_host:key(), Mountpoint :: binary()) -> boolean().
is_watchable({undefined, Filter}, Mountpoint) ->
    Size = byte_size(Mountpoint),
    case Filter of
        <<Mountpoint:Size/binary, "$SYS/ACCOUNT/", _/binary>> -> true;
        _ -> false
    end;
is_watchable(_, _) ->
    false.

%% The calling connection watches from now on.
-spec watch(nats_gateway_host:key(), watched()) -> watched().
watch(Key, none) ->
    ok = in_scope(fun() -> pg:join(?SCOPE, ?GROUP, self()) end),
    #{Key => []};
watch(Key, Watched) ->
    Watched#{Key => []}.

-spec unwatch(nats_gateway_host:key(), watched()) -> watched().
unwatch(Key, Watched) when map_size(Watched) =:= 1, is_map_key(Key, Watched) -> stop(Watched);
unwatch(Key, Watched) -> maps:remove(Key, Watched).

%% It does not watch any more.
-spec stop(watched()) -> watched().
stop(none) ->
    none;
stop(_) ->
    ok = in_scope(fun() -> pg:leave(?SCOPE, ?GROUP, self()) end),
    none.

-spec is_watched(nats_gateway_host:key(), watched()) -> boolean().
is_watched(_, none) -> false;
is_watched(Key, Watched) -> is_map_key(Key, Watched).

%% The keys that an event with this topic is for.
-spec matching(Topic :: binary(), watched()) -> [nats_gateway_host:key()].
matching(_, none) ->
    [];
matching(Topic, Watched) ->
    [Key || Key = {_, Filter} <- maps:keys(Watched), nats_gateway_nif:topic_matches(Filter, Topic)].

in_scope(Fun) ->
    try Fun() of
        _ -> ok
    catch
        %% The scope ends before the last connections.
        exit:_ -> ok
    end.

%% -------------------------------------------------------------------------------------------
%% Events

%% The client of the calling connection has logged in. `Facts' is called only if somebody watches.
-spec connected(fun(() -> facts())) -> ok.
connected(Facts) ->
    case watching() of
        [] ->
            ok;
        Watching ->
            tell(Watching, <<"CONNECT">>, Facts(), fun(#{client := Client}) ->
                #{type => <<"io.nats.server.advisory.v1.client_connect">>, client => Client}
            end)
    end.

%% It is gone, after it had logged in.
-spec disconnected(Reason :: term(), IsConnected :: boolean(), Figures, fun(() -> facts())) -> ok when
    Figures :: fun(() -> nats_gateway_census:figures()).
disconnected(_, false, _, _) ->
    ok;
disconnected(Reason, true, Figures, Facts) ->
    case watching() of
        [] ->
            ok;
        Watching ->
            Numbers = Figures(),
            tell(Watching, <<"DISCONNECT">>, Facts(), fun(#{client := Client, time := Now}) ->
                #{
                    type => <<"io.nats.server.advisory.v1.client_disconnect">>,
                    client => maps:merge(Client#{stop => Now}, maps:with([rtt], Numbers)),
                    %% as nats-server says it: by the client
                    sent => amount(messages_received, octets_received, Numbers),
                    received => amount(messages_sent, octets_sent, Numbers),
                    reason => reason(Reason)
                }
            end)
    end.

watching() ->
    try
        pg:get_members(?SCOPE, ?GROUP)
    catch
        error:badarg -> []
    end.

%% A WebSocket is closed with the same texts as nats-server has here.
reason({shutdown, Reason}) ->
    reason(Reason);
reason({error, Reason}) ->
    reason(Reason);
reason(Reason) ->
    {_, Text} = nats_gateway_ending:websocket_close(Reason),
    Text.

amount(Messages, Octets, Numbers) ->
    #{msgs => maps:get(Messages, Numbers, 0), bytes => maps:get(Octets, Numbers, 0)}.

%% A connection of another node misses the event if the way to that node is gone, or so busy that this
%% login had to wait. The message is a cast, but `gen_server:cast/2' would wait.
tell(Watching, Name, Facts, Make) ->
    #{config := Config, host := Host, description := #{account := Account}} = Facts,
    Now = now_rfc3339(),
    Made = Make(#{client => client(Facts), time => Now}),
    Event = Made#{
        id => id(),
        timestamp => Now,
        server => nats_gateway_system:server_info(nats_gateway_system:address(Host), Config)
    },
    Subject = <<"$SYS.ACCOUNT.", Account/binary, $., Name/binary>>,
    Payload = nats_gateway_nif:json(Event),
    lists:foreach(
        fun(Pid) ->
            erlang:send(Pid, {'$gen_cast', {client_event, Subject, Payload}}, [nosuspend, noconnect])
        end,
        lists:delete(self(), Watching)
    ).

%% The fields of nats-server's `ClientInfo', with its rule for those that are empty.
client(#{client_id := ClientId, description := Description}) ->
    #{peername := {PeerHost, _}, transport := Transport, account := Account} = Description,
    Started =
        case nats_gateway_census:started() of
            undefined -> #{};
            Ms -> #{start => rfc3339(Ms * 1000)}
        end,
    Optional = maps:filter(
        fun(_, Value) -> Value =/= <<>> andalso Value =/= [] end,
        maps:with([user, name, lang, jwt, issuer_key, name_tag, tags], Description)
    ),
    Version =
        case Description of
            #{version := <<_, _/binary>> = Ver} -> #{ver => Ver};
            #{} -> #{}
        end,
    lists:foldl(fun maps:merge/2, #{}, [
        Started,
        Optional,
        Version,
        #{
            host => nats_gateway_system:address(PeerHost),
            id => ClientId,
            acc => Account,
            kind => <<"Client">>,
            client_type => client_type(Transport)
        }
    ]).

client_type(Transport) when Transport =:= ws; Transport =:= wss -> <<"websocket">>;
client_type(_) -> <<"nats">>.

%% As long as one of nats-server's, and of the same letters.
id() ->
    Letters = <<"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz">>,
    <<<<(binary:at(Letters, Byte rem 62))>> || <<Byte>> <= rand:bytes(22)>>.

now_rfc3339() -> rfc3339(erlang:system_time(microsecond)).

rfc3339(Microseconds) ->
    list_to_binary(
        calendar:system_time_to_rfc3339(Microseconds, [{unit, microsecond}, {offset, "Z"}])
    ).
