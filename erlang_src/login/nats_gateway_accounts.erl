%% Counts the connections of accounts whose JWT limits them (`conn`): those of this node and, as far
%% as it has heard of them, those of all nodes of an EMQX cluster. nats-server counts them in the
%% same way. Accounts without a limit are not counted.
-module(nats_gateway_accounts).

-behaviour(gen_server).

-export([child_specs/0]).
-export([start_link/0]).
-export([join/2]).
-export([leave/1]).
-export([init/1, handle_call/3, handle_cast/2]).

%% The members of an account are its connections. They leave when they end.
-define(SCOPE, nats_gateway_account_members).

-spec child_specs() -> [supervisor:child_spec()].
child_specs() ->
    [
        #{id => ?SCOPE, start => {pg, start_link, [?SCOPE]}},
        #{id => ?MODULE, start => {?MODULE, start_link, []}}
    ].

-spec start_link() -> {ok, pid()} | {error, term()}.
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Adds the calling process to the connections of the account.
-spec join(Account :: binary(), Limit :: non_neg_integer() | infinity) -> ok | full.
join(_, infinity) -> ok;
join(Account, Limit) -> gen_server:call(?MODULE, {join, Account, Limit}, infinity).

%% Removes the calling process from the connections of the account, if it was one of them.
-spec leave(Account :: binary()) -> ok.
leave(Account) ->
    _ = pg:leave(?SCOPE, Account, self()),
    ok.

init([]) -> {ok, []}.

%% Calls are handled one after the other, so two connections never take the same last place.
handle_call({join, Account, Limit}, {Pid, _}, State) ->
    case length(pg:get_members(?SCOPE, Account)) >= Limit of
        true -> {reply, full, State};
        false -> {reply, pg:join(?SCOPE, Account, Pid), State}
    end.

handle_cast(_, State) -> {noreply, State}.
