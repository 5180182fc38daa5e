%% Compares passwords and tokens with a bcrypt hash. One comparison keeps a core busy for a while: a
%% twentieth of a second at cost 10.
%%
%% A client that guesses passwords must not occupy all cores of the node, or keep others from their
%% login. So at most half of the cores compute at the same time, and peer addresses take turns. The
%% more wrong passwords have come from an address lately, the later the next one is answered. A
%% password that was right is remembered, so clients that come back, perhaps by the thousands, do
%% not have to wait.
-module(nats_gateway_passwords).

-behaviour(gen_server).

-export([start_link/0]).
-export([verify/3]).
-export([result/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).
-export([terminate/2, format_status/1]).

-export_type([request/0]).

-opaque request() :: gen_server:request_id().

%% For IPv6, the network that one customer of a provider has, because a customer can use any address
%% in it.
-type network() :: inet:ip4_address() | {char(), char(), char(), char(), ipv6}.

-record(asked, {
    from :: gen_server:from(),
    %% for as long as the client waits
    client :: undefined | reference(),
    network :: network(),
    given :: binary(),
    hash :: binary()
}).

%% Networks take turns. Within a network, the passwords that are asked for take turns. So a client
%% that guesses the password of one user does not keep another user of the same host from logging
%% in.
-define(NOBODY, nats_gateway_turns:new(2)).

-record(state, {
    %% the digests of passwords that were right, one for each hash, are made with this key
    key = crypto:strong_rand_bytes(32) :: binary(),
    known = #{} :: #{Hash :: binary() => Digest :: binary()},
    free = max(1, erlang:system_info(schedulers_online) div 2) :: non_neg_integer(),
    running = #{} :: #{Worker :: reference() => #asked{}},
    waiting = ?NOBODY :: nats_gateway_turns:turns(#asked{}),
    clients = #{} :: #{Client :: reference() => {network(), nats_gateway_turns:place()}},
    counts = #{} :: #{network() => Clients :: pos_integer()},
    %% a number that halves every ?HALF_LIFE_MS, and the time at which it had this value
    failures = #{} :: #{network() => {float(), integer()}}
}).

%% How many clients may wait: in one network, and in all. Others are refused.
-define(MAX_OF_NETWORK, 1000).
-define(MAX_WAITING, 10000).

-define(MAX_KNOWN, 10000).
-define(MAX_FAILING, 10000).

%% The first failure is reported at once. Each recent failure adds so much, up to the time after
%% which clients give up on a server.
-define(DELAY_MS, 50).
-define(MAX_DELAY_MS, 1800).
-define(HALF_LIFE_MS, 10000).

-spec start_link() -> gen_server:start_ret().
start_link() -> nats_gateway_guard:start_link({local, ?MODULE}, ?MODULE, []).

%% The calling process gets a message that `result/2' understands. If it ends before that, others
%% get its turn.
-spec verify(Given :: binary(), Hash :: binary(), inet:ip_address()) -> request().
verify(Given, Hash, Address) ->
    gen_server:send_request(?MODULE, {verify, Given, Hash, network(Address)}).

%% `busy' means that too many are waiting.
-spec result(Message :: term(), request()) -> right | wrong | busy | no_result.
result(Message, Request) ->
    case gen_server:check_response(Message, Request) of
        {reply, Result} -> Result;
        {error, _} -> busy;
        no_reply -> no_result
    end.

network({0, 0, 0, 0, 0, 16#FFFF, AB, CD}) ->
    {AB bsr 8, AB band 16#FF, CD bsr 8, CD band 16#FF};
network({A, B, C, D, _, _, _, _}) ->
    {A, B, C, D, ipv6};
network(Address) ->
    Address.

init([]) -> {ok, #state{}}.

handle_call({verify, Given, Hash, Network}, From, State) ->
    case is_known(Given, Hash, State) of
        true -> {reply, right, State};
        false -> wait(#asked{from = From, network = Network, given = Given, hash = Hash}, State)
    end;
handle_call(_, _, State) ->
    {reply, ignored, State}.

handle_cast(_, State) -> {noreply, State}.

handle_info({'DOWN', Monitor, process, _, Reason}, State = #state{running = Running}) ->
    case maps:take(Monitor, Running) of
        {Asked, NRunning} ->
            Settled = compared(Reason =:= {verified, true}, Asked, State#state{running = NRunning}),
            {noreply, start(Settled#state{free = Settled#state.free + 1})};
        error ->
            {noreply, client_ended(Monitor, State)}
    end;
handle_info({wrong, From}, State) ->
    ok = gen_server:reply(From, wrong),
    {noreply, State};
handle_info(_, State) ->
    {noreply, State}.

terminate(_, _) -> ok.

%% Nothing of the rest may be shown.
format_status(Status = #{state := #state{clients = Clients, running = Running}}) ->
    Status#{state := #{waiting => map_size(Clients), running => map_size(Running)}}.

%% -------------------------------------------------------------------------------------------

wait(Asked = #asked{from = {Pid, _}, network = Network, hash = Hash}, State) ->
    #state{waiting = Waiting, clients = Clients, counts = Counts} = State,
    Count = maps:get(Network, Counts, 0),
    IsFull =
        Count >= ?MAX_OF_NETWORK orelse
            max(map_size(Clients), nats_gateway_turns:keys(Waiting)) >= ?MAX_WAITING,
    case IsFull of
        true ->
            {reply, busy, State};
        false ->
            Client = monitor(process, Pid),
            {Place, NWaiting} = nats_gateway_turns:in(
                [Network, Hash], Asked#asked{client = Client}, Waiting
            ),
            {noreply,
                start(State#state{
                    waiting = NWaiting,
                    clients = Clients#{Client => {Network, Place}},
                    counts = Counts#{Network => Count + 1}
                })}
    end.

%% This client has ended.
client_ended(Client, State = #state{clients = Clients, waiting = Waiting}) ->
    case Clients of
        #{Client := {_, Place}} ->
            forget(Client, State#state{waiting = nats_gateway_turns:delete(Place, Waiting)});
        #{} ->
            State
    end.

forget(Client, State = #state{clients = Clients, counts = Counts}) ->
    {{Network, _}, NClients} = maps:take(Client, Clients),
    State#state{
        clients = NClients,
        counts =
            case Counts of
                #{Network := 1} -> maps:remove(Network, Counts);
                #{Network := Count} -> Counts#{Network := Count - 1}
            end
    }.

start(State = #state{free = 0}) ->
    State;
start(State = #state{waiting = Waiting}) ->
    case nats_gateway_turns:out(Waiting) of
        empty -> State#state{waiting = ?NOBODY};
        {Asked, NWaiting} -> start(compare(Asked, State#state{waiting = NWaiting}))
    end.

compare(Asked = #asked{client = Client, given = Given, hash = Hash}, State) ->
    true = demonitor(Client, [flush]),
    NState = forget(Client, State),
    case is_known(Given, Hash, NState) of
        true ->
            reply(right, Asked, NState);
        false ->
            {_, Worker} = spawn_monitor(fun() ->
                exit({verified, nats_gateway_nif:bcrypt_verify(Given, Hash)})
            end),
            #state{free = Free, running = Running} = NState,
            NState#state{free = Free - 1, running = Running#{Worker => Asked}}
    end.

compared(true, Asked = #asked{given = Given, hash = Hash}, State = #state{known = Known}) ->
    Digest = digest(Given, Hash, State),
    Others =
        case map_size(Known) < ?MAX_KNOWN of
            true -> Known;
            false -> #{}
        end,
    reply(right, Asked, State#state{known = Others#{Hash => Digest}});
compared(false, Asked = #asked{network = Network, from = From}, State) ->
    {Count, NState} = count_failure(Network, State),
    case min(?MAX_DELAY_MS, round(?DELAY_MS * (Count - 1))) of
        0 ->
            reply(wrong, Asked, NState);
        Delay ->
            _ = erlang:send_after(Delay, self(), {wrong, From}),
            NState
    end.

reply(Result, #asked{from = From}, State) ->
    ok = gen_server:reply(From, Result),
    State.

count_failure(Network, State = #state{failures = Failures}) ->
    Now = erlang:monotonic_time(millisecond),
    {Before, At} = maps:get(Network, Failures, {0.0, Now}),
    Count = Before * math:pow(0.5, (Now - At) / ?HALF_LIFE_MS) + 1,
    Others =
        case map_size(Failures) < ?MAX_FAILING of
            true -> Failures;
            false -> #{}
        end,
    {Count, State#state{failures = Others#{Network => {Count, Now}}}}.

is_known(Given, Hash, State = #state{known = Known}) ->
    case Known of
        #{Hash := Digest} -> crypto:hash_equals(Digest, digest(Given, Hash, State));
        #{} -> false
    end.

digest(Given, Hash, #state{key = Key}) -> crypto:mac(hmac, sha256, Key, [Hash, Given]).
