%% Answers what clients with system access ask below `$SYS.REQ.SERVER', as a nats-server does: with the
%% facts of the monitoring port.
%%
%% There is one process of this module per node, and all of a cluster know each other: a PING goes to
%% all of them, any other request to the one whose id it names. Answers are made by processes of their
%% own, a few at a time, and go straight to the client that has asked.
-module(nats_gateway_monitor_system).

-behaviour(gen_server).

-export([change/2]).
-export([forget/0]).
-export([ask/1]).
-export([start_link/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).
%% For tests
-export([fit/3]).

-include_lib("kernel/include/logger.hrl").

-type gateway() :: fun(() -> nats_gateway_monitor_facts:gateway()).

-type kind() :: idz | statsz | varz | connz | subsz | healthz | kick | ldm.

-record(state, {
    %% those of pg that this process is in: all servers, and those with this id
    groups = [] :: [servers | {server, Id :: binary()}],
    running = #{} :: #{
        Monitor :: reference() => {pid(), Timer :: reference(), nats_gateway_host:server_request()}
    },
    waiting = queue:new() :: queue:queue({kind(), nats_gateway_host:server_request()})
}).

%% Answers that are made at the same time, and requests that wait for their turn.
-define(AT_ONCE, 4).
-define(MAX_WAITING, 64).
%% What making one may take. Those who ask wait for 2 to 5 s.
-define(WORK_MS, 10000).
-define(LAME_DUCK_MS, 2000).
-define(KICK_MS, 2000).
%% Bytes of a request.
-define(MAX_BODY, 65536).

%% The scope of pg.
-define(SCOPE, nats_gateway_servers).

%% Whether anybody may ask, from now on. To be called again when the gateway has other settings. The
%% process stays when nobody may any more: at the end of the application its supervisor could not be
%% asked to stop it.
-spec change(IsOn :: boolean(), gateway()) -> ok.
change(true, Gateway) ->
    ok = nats_gateway_monitor:count_clients(),
    ok = persistent_term:put(?MODULE, Gateway),
    ok = nats_gateway_monitor:start_child(#{id => ?SCOPE, start => {pg, start_link, [?SCOPE]}}),
    ok = nats_gateway_monitor:start_child(#{id => ?MODULE, start => {?MODULE, start_link, []}}),
    gen_server:cast(?MODULE, changed);
change(false, _) ->
    ok = forget(),
    gen_server:cast(?MODULE, changed).

%% Called when the application ends, too.
-spec forget() -> ok.
forget() ->
    _ = persistent_term:erase(?MODULE),
    ok.

%% The answers come through `nats_gateway_connection:answer/3'.
-spec ask(nats_gateway_host:server_request()) -> ok | no_responders.
ask(Request = #{name := Name}) ->
    case addressed(Name) of
        {Servers = [_ | _], Kind} when Kind =/= unknown ->
            gen_server:cast(?MODULE, {ask, Servers, Kind, Request});
        _ ->
            no_responders
    end.

%% The names of nats-server's services. What is asked of a gateway without it (JetStream, routes,
%% leaf nodes) has no responders.
addressed(Name) ->
    case binary:split(Name, <<".">>, [global]) of
        [<<"PING">>] -> {members(servers), statsz};
        [<<"PING">>, Service] -> {members(servers), service(Service)};
        [Id, <<"KICK">>] -> {one(members({server, Id})), kick};
        [Id, <<"LDM">>] -> {one(members({server, Id})), ldm};
        [Id, Service] -> {one(members({server, Id})), service(Service)};
        _ -> unknown
    end.

service(<<"IDZ">>) -> idz;
service(<<"STATSZ">>) -> statsz;
service(<<"VARZ">>) -> varz;
service(<<"CONNZ">>) -> connz;
service(<<"SUBSZ">>) -> subsz;
service(<<"HEALTHZ">>) -> healthz;
service(_) -> unknown.

members(Group) ->
    try
        pg:get_members(?SCOPE, Group)
    catch
        error:badarg -> []
    end.

%% Servers with the same id cannot be told apart, and a cid means nothing on another one: it is the
%% one that the client is connected to.
one(Servers) ->
    case [Server || Server <- Servers, node(Server) =:= node()] of
        [] -> lists:sublist(Servers, 1);
        Here -> Here
    end.

%% -------------------------------------------------------------------------------------------

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

init([]) ->
    %% Without it, nobody would find this process.
    true = link(whereis(?SCOPE)),
    {ok, join(#state{})}.

handle_call(_, _, State) -> {reply, ignored, State}.

handle_cast(changed, State) ->
    {noreply, join(State)};
handle_cast({ask, Servers, Kind, Request}, State) ->
    lists:foreach(
        fun(Server) -> gen_server:cast(Server, {answer, Kind, Request}) end, lists:delete(self(), Servers)
    ),
    case lists:member(self(), Servers) of
        true -> handle_cast({answer, Kind, Request}, State);
        false -> {noreply, State}
    end;
handle_cast({answer, Kind, Request}, State = #state{running = Running, waiting = Waiting}) ->
    case map_size(Running) < ?AT_ONCE of
        true ->
            {noreply, start(Kind, Request, State)};
        false ->
            case queue:len(Waiting) < ?MAX_WAITING of
                true ->
                    {noreply, State#state{waiting = queue:in({Kind, Request}, Waiting)}};
                false ->
                    ok = fail(503, <<"too many requests at a time">>, Request),
                    {noreply, State}
            end
    end;
handle_cast(_, State) ->
    {noreply, State}.

handle_info({'DOWN', Monitor, process, _, Reason}, State = #state{running = Running}) ->
    case maps:take(Monitor, Running) of
        {{_, Timer, Request}, Left} ->
            _ = erlang:cancel_timer(Timer),
            Reason =:= normal orelse fail(500, <<"the answer could not be made in time">>, Request),
            {noreply, start_next(State#state{running = Left})};
        error ->
            {noreply, State}
    end;
handle_info({late, Worker}, State) ->
    true = exit(Worker, kill),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

start(Kind, Request, State = #state{running = Running}) ->
    {Worker, Monitor} = spawn_monitor(fun() -> work(Kind, Request) end),
    Timer = erlang:send_after(?WORK_MS, self(), {late, Worker}),
    State#state{running = Running#{Monitor => {Worker, Timer, Request}}}.

start_next(State = #state{waiting = Waiting}) ->
    case queue:out(Waiting) of
        {{value, {Kind, Request}}, Left} -> start(Kind, Request, State#state{waiting = Left});
        {empty, _} -> State
    end.

join(State = #state{groups = Old}) ->
    New =
        case gateway() of
            none -> [];
            #{config := #{server_id := Id}} -> [servers, {server, Id}]
        end,
    lists:foreach(fun(Group) -> pg:leave(?SCOPE, Group, self()) end, Old -- New),
    lists:foreach(fun(Group) -> ok = pg:join(?SCOPE, Group, self()) end, New -- Old),
    State#state{groups = New}.

%% Its facts may be gone already when the gateway ends.
gateway() ->
    try persistent_term:get(?MODULE, none) of
        none -> none;
        Gateway -> Gateway()
    catch
        error:badarg -> none
    end.

%% -------------------------------------------------------------------------------------------
%% One answer

work(Kind, Request) ->
    case gateway() of
        %% Nobody may ask any more.
        none -> ok;
        Gateway -> work(Kind, Request, Gateway)
    end.

work(Kind, Request = #{body := Body}, Gateway) ->
    try
        Options = options(Body),
        case is_asked(Options, Gateway) of
            true -> answer(facts(Kind, Options, Request, Gateway), Request, Gateway);
            false -> ok
        end
    catch
        throw:{bad_request, Text} ->
            fail(400, string:trim(iolist_to_binary(Text)), Request, Gateway);
        Class:Reason:Stack ->
            Caught = nats_gateway_guard:caught(Class, Reason, Stack),
            ?LOG_ERROR(Caught#{msg => system_request_failed, request => Kind}),
            fail(500, <<"the gateway could not tell: its log says why">>, Request, Gateway)
    end.

-spec options(binary()) -> #{binary() => term()}.
options(Body) when byte_size(Body) > ?MAX_BODY ->
    bad_request(<<"the request is too long">>);
options(Body) ->
    case Body =:= <<>> orelse nats_gateway_nif:json_decode(Body) of
        true -> #{};
        {ok, Options} when is_map(Options) -> Options;
        _ -> bad_request(<<"the request must be a JSON object">>)
    end.

-spec bad_request(binary()) -> no_return().
bad_request(Text) -> throw({bad_request, Text}).

%% A request may name the servers that it is for, by their names or parts of them. There are no
%% clusters, tags and domains here.
is_asked(Options, Gateway) ->
    #{name := Name, host := Host} = nats_gateway_monitor_facts:server_info(Gateway),
    holds(<<"server_name">>, Name, Options) andalso
        holds(<<"host">>, Host, Options) andalso
        lists:all(
            fun(Key) -> lists:member(maps:get(Key, Options, null), [null, <<>>, []]) end,
            [<<"cluster">>, <<"tags">>, <<"domain">>]
        ).

holds(Key, Text, Options) ->
    case Options of
        #{Key := Same} when Same =:= Text; Same =:= <<>> -> true;
        #{Key := Part} when is_binary(Part) ->
            %% nats-server 2.12
            maps:get(<<"exact_match">>, Options, false) =/= true andalso
                binary:match(Text, Part) =/= nomatch;
        #{Key := null} -> true;
        #{Key := _} -> bad_request(<<Key/binary, ": must be a string">>);
        #{} -> true
    end.

facts(idz, _, _, Gateway) ->
    {whole, maps:with([name, host, id], nats_gateway_monitor_facts:server_info(Gateway))};
facts(statsz, _, _, Gateway) ->
    {statsz, (nats_gateway_monitor_facts:statsz(Gateway))#{active_servers => length(members(servers))}};
facts(varz, _, _, Gateway) ->
    {Requests, Bind} = nats_gateway_monitor:served(),
    {data, nats_gateway_monitor_facts:varz(Requests, Bind, Gateway)};
facts(connz, Options, _, Gateway) ->
    {data, nats_gateway_monitor_facts:connz(nats_gateway_monitor:connz_options(connz_query(Options)), Gateway)};
facts(subsz, Options, _, Gateway) ->
    {data, nats_gateway_monitor_facts:subsz(nats_gateway_monitor:subsz_options(subsz_query(Options)), Gateway)};
facts(healthz, _, _, Gateway) ->
    {Status, Health} = nats_gateway_monitor_facts:healthz(Gateway),
    {data, Health#{status_code => Status}};
facts(kick, Options, #{by := By}, _) ->
    case client(Options) of
        {ok, Cid, Pid} ->
            ?LOG_NOTICE(#{msg => client_kicked, client_id => Cid, by => By}),
            case nats_gateway_connection:kick([Pid], ?KICK_MS) of
                1 -> done;
                0 -> {error, <<"no such client or leafnode id">>}
            end;
        error ->
            {error, <<"no such client or leafnode id">>}
    end;
facts(ldm, Options, _, _) ->
    case client(Options) of
        {ok, _, Pid} -> told_lame_duck(Pid);
        error -> {error, <<"no such client id">>}
    end.

client(Options) ->
    case Options of
        #{<<"cid">> := Cid} when is_integer(Cid), Cid > 0 ->
            case nats_gateway_census:find(Cid) of
                {ok, Pid} -> {ok, Cid, Pid};
                error -> error
            end;
        #{<<"cid">> := Cid} when not is_integer(Cid); Cid < 0 ->
            bad_request(<<"cid: must be a whole number">>);
        #{} ->
            error
    end.

told_lame_duck(Pid) ->
    try nats_gateway_connection:tell_lame_duck(Pid, ?LAME_DUCK_MS) of
        true ->
            done;
        false ->
            {error, <<
                "client does not support Lame Duck Mode or is not ready to receive the notification"
            >>}
    catch
        exit:_ -> {error, <<"no such client id">>}
    end.

%% What nats-server takes as JSON, in the form of the monitoring port's parameters. It sends what is
%% not set as well.
connz_query(Options) ->
    Query = query([sort, auth, offset, limit, cid, user, acc, filter_subject], Options),
    _ = maps:get(<<"mqtt_client">>, Options, <<>>) =:= <<>> orelse
        bad_request(<<"mqtt_client: no client of this server has one">>),
    maps:merge(Query, #{
        <<"state">> =>
            case maps:get(<<"state">>, Options, 0) of
                0 -> <<"open">>;
                1 -> <<"closed">>;
                2 -> <<"any">>;
                _ -> bad_request(<<"state: 0, 1 or 2">>)
            end,
        <<"subs">> =>
            case Options of
                #{<<"subscriptions_detail">> := true} -> <<"detail">>;
                #{<<"subscriptions">> := true} -> <<"1">>;
                #{} -> <<"0">>
            end
    }).

subsz_query(Options) ->
    Query = query([offset, limit, test, account], Options),
    case Options of
        #{<<"subscriptions">> := true} -> Query#{<<"subs">> => <<"1">>};
        #{} -> Query
    end.

query(Names, Options) ->
    maps:from_list([
        {Name, parameter(Name, Value)}
     || Name <- [atom_to_binary(Name) || Name <- Names],
        #{Name := Value} <- [Options],
        not lists:member(Value, [0, <<>>, null])
    ]).

parameter(_, Value) when is_binary(Value) -> Value;
parameter(_, Value) when is_integer(Value) -> integer_to_binary(Value);
parameter(_, true) -> <<"1">>;
parameter(_, false) -> <<"0">>;
parameter(Name, _) -> bad_request(<<Name/binary, ": must be a string, a number, true or false">>).

answer({error, Text}, Request, Gateway) -> fail(500, Text, Request, Gateway);
answer(done, Request, Gateway) -> send(envelope(#{}, Gateway), Request);
answer({whole, Facts}, Request, _) -> send(Facts, Request);
answer({Part, Facts}, Request = #{max := Max}, Gateway) ->
    case fit(Facts, fun(Some) -> envelope(#{Part => Some}, Gateway) end, Max) of
        {ok, Json} ->
            send_json(Json, Request);
        too_large ->
            Text = [<<"the answer has more than max_payload, ">>, integer_to_binary(Max), <<" bytes">>],
            fail(500, iolist_to_binary(Text), Request, Gateway)
    end.

envelope(Parts, Gateway) -> Parts#{server => nats_gateway_monitor_facts:server_info(Gateway)}.

%% Fewer of a list, if all of them are more than one message may hold. `limit' then says how many they
%% are, so that whoever reads on by offset and limit finds the others. Each is encoded by itself: one
%% call for thousands would keep others from a scheduler.
-spec fit(map(), fun((map()) -> map()), Max :: non_neg_integer()) -> {ok, binary()} | too_large.
fit(Facts = #{connections := Listed}, Envelope, Max) when is_list(Listed) ->
    fit_list(connections, Listed, Facts, Envelope, Max);
fit(Facts = #{subscriptions_list := Listed}, Envelope, Max) ->
    fit_list(subscriptions_list, Listed, Facts, Envelope, Max);
fit(Facts, Envelope, Max) ->
    case nats_gateway_nif:json(Envelope(Facts)) of
        Json when byte_size(Json) =< Max -> {ok, Json};
        _ -> too_large
    end.

fit_list(Key, Listed, Facts, Envelope, Max) ->
    Empty = nats_gateway_nif:json(Envelope(Facts#{Key := []})),
    case take(Listed, Max - byte_size(Empty), []) of
        {Taken, all} when Taken =/= []; byte_size(Empty) =< Max ->
            {ok, with_list(Key, Taken, Empty)};
        {[_ | _] = Taken, more} ->
            {ok, with_list(Key, Taken, nats_gateway_nif:json(Envelope(shortened(Key, length(Taken), Facts))))};
        _ ->
            too_large
    end.

%% The numbers are no longer than those that they replace.
shortened(connections, N, Facts) -> Facts#{connections := [], num_connections := N, limit := N};
shortened(subscriptions_list, N, Facts) -> Facts#{subscriptions_list := [], limit := N}.

take([], _, Taken) ->
    {lists:reverse(Taken), all};
take([Each | Listed], Room, Taken) ->
    Json = nats_gateway_nif:json(Each),
    case Room - byte_size(Json) - comma(Taken) of
        Left when Left >= 0 -> take(Listed, Left, [Json | Taken]);
        _ -> {lists:reverse(Taken), more}
    end.

%% Bytes of the one that comes before the next.
comma([]) -> 0;
comma(_) -> 1.

%% A quote within a string has a backslash before it: only a key looks like this.
with_list(Key, Taken, Empty) ->
    Member = <<$", (atom_to_binary(Key))/binary, "\":[">>,
    [Before, After] = binary:split(Empty, <<Member/binary, $]>>),
    iolist_to_binary([Before, Member, lists:join($,, Taken), $] | After]).

fail(Code, Text, Request) ->
    case gateway() of
        none -> ok;
        Gateway -> fail(Code, Text, Request, Gateway)
    end.

fail(Code, Text, Request, Gateway) ->
    send(envelope(#{error => #{code => Code, description => Text}}, Gateway), Request).

send(Term, Request) -> send_json(nats_gateway_nif:json(Term), Request).

send_json(Json, #{requester := Requester, reply_topic := ReplyTopic}) ->
    nats_gateway_connection:answer(Requester, ReplyTopic, Json).
